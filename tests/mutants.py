"""Mutation testing of the pure modules that decide: `python -m tests.mutants OUT`.

Changes one operator, comparison, constant or boolean at a time, runs the module's unit tests in a
fresh process, and writes every change that no test noticed. A copy of the package is changed, never
the working tree.
"""

from __future__ import annotations

import ast
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from copy import deepcopy
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).resolve().parents[1]
SECONDS: Final = 120
TARGETS: Final = {
    "detection/intervals.py": ("test_statistics.py",),
    "detection/decide.py": ("test_detection.py",),
    "detection/correction.py": ("test_correction.py", "test_clusters.py"),
    "detection/clusters.py": ("test_clusters.py",),
    "detection/watches.py": ("test_watches.py",),
    "streaming/watermark.py": ("test_streaming_watermark.py",),
    "repair/gate.py": ("test_gate.py",),
    "repair/plan.py": ("test_plan.py",),
}
"""Module to the unit tests that specify it."""
_COMPARISONS: Final[dict[type[ast.cmpop], type[ast.cmpop]]] = {
    ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt,
    ast.Eq: ast.NotEq, ast.NotEq: ast.Eq, ast.In: ast.NotIn, ast.NotIn: ast.In,
    ast.Is: ast.IsNot, ast.IsNot: ast.Is,
}  # fmt: skip
_OPERATORS: Final[dict[type[ast.operator], type[ast.operator]]] = {
    ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Div, ast.Div: ast.Mult,
}  # fmt: skip


def mutants(source: str) -> Iterator[tuple[int, str, str]]:
    """(line, what was changed, the changed source) of every single change."""
    tree = ast.parse(source)
    for number, node in enumerate(ast.walk(tree)):
        changed = deepcopy(tree)
        twin = list(ast.walk(changed))[number]
        if what := _change(twin):
            yield getattr(node, "lineno", 0), what, ast.unparse(ast.fix_missing_locations(changed))


def _change(node: ast.AST) -> str | None:
    """Change the node in place; None where there is nothing to change."""
    if isinstance(node, ast.Compare) and (other := _COMPARISONS.get(type(node.ops[0]))):
        name = type(node.ops[0]).__name__
        node.ops[0] = other()
        return f"{name} to {other.__name__}"
    if isinstance(node, ast.BinOp) and (swapped := _OPERATORS.get(type(node.op))):
        name = type(node.op).__name__
        node.op = swapped()
        return f"{name} to {swapped.__name__}"
    if isinstance(node, ast.BoolOp):
        name = type(node.op).__name__
        node.op = ast.Or() if isinstance(node.op, ast.And) else ast.And()
        return f"{name} to {type(node.op).__name__}"
    if isinstance(node, ast.Constant) and isinstance(node.value, int | float):
        value = node.value
        if isinstance(value, bool):
            node.value = not value
            return f"{value} to {node.value}"
        node.value = value + 1 if isinstance(value, int) else value * 1.5 + 0.1
        return f"{value} to {node.value}"
    return None


def survivors(name: str, tests: tuple[str, ...], copy: Path) -> Iterator[str]:
    """The changes of a module that its tests did not notice."""
    file = copy / "ares_stream" / name
    source = file.read_text()
    paths = [str(copy / "tests/unit" / test) for test in tests]
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", *paths]
    environment = {**os.environ, "PYTHONPATH": str(copy), "PYTHONDONTWRITEBYTECODE": "1"}
    try:
        for line, what, changed in mutants(source):
            file.write_text(changed)
            try:
                done = subprocess.run(
                    command, cwd=copy, env=environment, capture_output=True, timeout=SECONDS,
                    check=False,
                )  # fmt: skip
            except subprocess.TimeoutExpired:
                continue  # A loop without an end is noticed.
            if done.returncode == 0:
                yield f"ares_stream/{name}:{line}: {what}"
    finally:
        file.write_text(source)


def main(out: Path, only: str | None = None) -> None:
    """Write survivors as they are found; `only` names one module."""
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder, out.open("w") as report:
        copy = Path(folder)
        for name in ("ares_stream", "tests"):
            shutil.copytree(ROOT / name, copy / name)
        shutil.copy(ROOT / "pyproject.toml", copy)
        for name, tests in TARGETS.items():
            if only in (None, name):
                for survivor in survivors(name, tests, copy):
                    report.write(f"{survivor}\n")
                    report.flush()


if __name__ == "__main__":
    main(Path(sys.argv[1]), *sys.argv[2:])
