"""The help pages: quick, plain, with an example that works."""

from __future__ import annotations

import re
import shlex
from typing import Any

import pytest
import typer.main
from typer.core import TyperGroup
from typer.testing import CliRunner

from ares_stream.cli.examples import EXAMPLES
from ares_stream.cli.main import app
from tests.support.fresh import imported

HEAVY = "scipy", "torch", "transformers", "onnxruntime", "httpx", "fsspec", "numpy", "pydantic"


def leaves(command: Any, path: str = "") -> list[tuple[str, Any]]:
    if not isinstance(command, TyperGroup):
        return [(path, command)]
    context = command.make_context("ares", [], resilient_parsing=True)
    found = []
    for name in command.list_commands(context):
        found += leaves(command.get_command(context, name), f"{path} {name}".strip())
    return found


LEAVES = leaves(typer.main.get_command(app))


def test_help_imports_nothing_heavy() -> None:
    # As the program begins, which is more than what the commands' root imports.
    code = "import contextlib, io, sys\nfrom ares_stream.__main__ import main\n"
    code += "sys.argv[1:], out = ['--help'], io.StringIO()\n"
    code += "with contextlib.redirect_stdout(out), contextlib.suppress(SystemExit): main()\n"
    code += "assert 'Commands:' in out.getvalue()"
    assert imported(code, (*HEAVY, "rich")) == set()


@pytest.mark.parametrize(("path", "command"), LEAVES, ids=[path for path, _ in LEAVES])
def test_every_command_has_an_example_that_parses(path: str, command: Any) -> None:
    words = shlex.split(EXAMPLES[path])
    assert words[: len(path.split()) + 1] == ["ares", *path.split()]
    command.make_context(path, words[len(path.split()) + 1 :])


@pytest.mark.parametrize("path", [path for path, _ in LEAVES])
def test_a_help_page_is_plain_and_ends_with_its_example(path: str) -> None:
    page = CliRunner().invoke(app, [*path.split(), "--help"]).output
    assert "<bool>" not in page
    assert not re.search(r"--\S+ <list\[", page)
    assert page.rstrip().splitlines()[-1].strip() == EXAMPLES[path]


def test_defaults_in_brackets_are_shown() -> None:
    page = CliRunner().invoke(app, ["bundle", "train", "harm", "--help"]).output
    assert "[all cores]" in page


def test_a_mistyped_command_is_answered_with_the_nearest() -> None:
    assert "scan" in CliRunner().invoke(app, ["scam"]).output


def test_a_folder_that_cannot_be_written_is_one_line_and_exit_code_2() -> None:
    done = CliRunner().invoke(app, ["schemas", "write", "/proc/nowhere"])
    assert done.exit_code == 2
    assert len(done.output.splitlines()) == 1
    assert "/proc/nowhere" in done.output
