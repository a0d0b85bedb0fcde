"""`ares bench repair`, `repair-cost` and `repair-poison`: repairs of models weakened on purpose."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ares_stream.cli import bench_real
from ares_stream.errors import SettingsError

if TYPE_CHECKING:
    from rich.progress import Progress
    from rich.table import Table

    from ares_stream.cli.terminal import Console
    from ares_stream.lab.jobs import Step

COLUMNS = {
    "cfr": "CFR", "cfr_frozen_rm": "CFR frozen", "policy_harm": "harm", "rm_blind": "RM blind",
    "drift_fixed": "drift", "drift_on_policy": "drift on-pol.", "rm_accuracy": "RM acc.",
    "over_refusal": "over-ref.", "garbage": "garbage",
}  # fmt: skip

_PIPE_WIDTH = 130

JsonOut = Annotated[Path | None, typer.Option("--json", help="Write every figure here.")]
Cache = Annotated[
    Path | None,
    typer.Option(help="Kept results; build/testbed, or build/real-repair with a profile."),
]

Seed = Annotated[int, typer.Option(min=0, help="The victim.")]
Workers = Annotated[
    int | None, typer.Option(min=1, help="Processes side by side; one per core by default.")
]


def repair(
    seeds: Annotated[str, typer.Option(help="Victims, by seed, separated by commas.")] = "11,12,13",
    json_file: JsonOut = None,
    cache: Cache = None,
    workers: Workers = None,
    split: Annotated[
        str, typer.Option(help="Prompts that are measured: test, or dev for tuning.")
    ] = "test",
    profile: bench_real.Profile = None,
    data: bench_real.Data = bench_real.DATA,
    quick: bench_real.Quick = False,
) -> None:
    """Repair victims by five methods on equal terms, and print what became of them.

    With --profile a real policy is repaired by the joint method instead.

    Exits 0 when measured; 2 for a wrong option; 1 when a victim misses its starting line.
    """
    from ares_stream.files import check_outputs, write_document
    from ares_stream.lab.experiments.repair.methods import METHODS, run_bench

    check_outputs({"--json": json_file}, {})
    if split not in ("test", "dev"):
        raise SettingsError(f"--split {split}: is test or dev")
    if profile is not None:
        bench_real.repair(json_file, data, profile, split, quick=quick, cache=cache)
        return
    chosen = parse_seeds(seeds)
    with _bars() as progress:
        found = run_bench(
            chosen,
            cache=cache,
            workers=workers,
            split="dev" if split == "dev" else "test",
            progress=_Tasks(progress, jobs=len(chosen) * (1 + len(METHODS))),
        )
    if json_file is not None:
        write_document(json_file, found)
    print_repair(found, _wide())


def repair_cost(
    seed: Seed = 11,
    json_file: JsonOut = None,
    cache: Cache = None,
) -> None:
    """Time the joint repair against TRL's RewardTrainer followed by its DPOTrainer."""
    from ares_stream.cli.terminal import Console
    from ares_stream.files import check_outputs, write_document
    from ares_stream.lab.experiments.repair.cost import run_cost

    check_outputs({"--json": json_file}, {})
    console = Console(stderr=True)
    with console.status("training by both"):
        found = run_cost(seed, cache=cache)
    if json_file is not None:
        write_document(json_file, found)
    for name, value in found.items():
        if name.endswith("_seconds") or name.startswith("joint_over_trl"):
            typer.echo(f"{name:30} {value:.2f}")
    table = _table(f"what each leaves: %, drift in sd; seed {seed}", COLUMNS.values())
    for side, figures in found["figures"].items():
        table.add_row(side, *(_cell(name, figures[name]) for name in COLUMNS))
    _wide().print(table)


def repair_poison(
    seed: Seed = 11, json_file: JsonOut = None, cache: Cache = None, workers: Workers = None
) -> None:
    """Repair a victim from clean batches and from batches that a few sources poisoned.

    Exits 0 when every poisoned repair was rejected or kept every figure, 1 otherwise; 2 for a
    wrong option.
    """
    from ares_stream.files import check_outputs, write_document
    from ares_stream.lab.experiments.repair.poison import FIGURES, KINDS, SHARES, run_poison

    check_outputs({"--json": json_file}, {})
    with _bars() as progress:
        found = run_poison(
            seed,
            cache=cache,
            workers=workers,
            progress=_Tasks(progress, jobs=2 + len(KINDS) * len(SHARES)),
        )
    if json_file is not None:
        write_document(json_file, found)
    headings = [COLUMNS[name] for name in FIGURES]
    table = _table(
        f"poisoned batches: %, drift in sd; seed {seed}", ("trained", *headings, "gate", "held")
    )
    rows = [("clean", found["clean"])]
    for kind, by_share in found["poison"].items():
        rows += [(f"{kind} {float(share):.0%}", row) for share, row in by_share.items()]
    for label, row in rows:
        table.add_row(
            label,
            str(row["poison_trained"]),
            *(_cell(name, row["figures"][name]) for name in FIGURES),
            "passed" if row["gate"]["passed"] else "rejected",
            {True: "yes", False: "no"}.get(row.get("held"), ""),
        )
    _wide().print(table)
    if not all(row.get("held", True) for _, row in rows):
        raise typer.Exit(1)


def parse_seeds(text: str) -> list[int]:
    """ "11,12" → [11, 12]. Raises SettingsError."""
    try:
        found = [int(part) for part in text.split(",")]
    except ValueError:
        raise SettingsError(f"--seeds {text}: expected numbers such as 11,12,13") from None
    if len(set(found)) != len(found) or min(found) < 0:
        raise SettingsError(f"--seeds {text}: each seed once, none below 0")
    return found


def print_repair(found: dict[str, Any], console: Console) -> None:
    """The tables of the benchmark, and the published table's form beside ours."""
    for title, path in (
        ("held-out prompts", ()),
        ("held-out prompts, after further RLHF", ("after_rlhf",)),
        ("never-probed tactics", ("never_probed",)),
        ("never-probed tactics, after further RLHF", ("after_rlhf", "never_probed")),
    ):
        table = _table(f"{title}: %, drift in sd; mean of seeds {found['seeds']}", COLUMNS.values())
        for method, row in found["methods"].items():
            for step in path:
                row = row[step]
            table.add_row(method, *(_cell(name, row[name]["mean"]) for name in COLUMNS))
        console.print(table)
    table = _table(
        "the published table's form, published → here",
        ("CFR before", "CFR after", "RM drift (on-policy)"),
    )
    before = found["methods"]["none"]["cfr"]["mean"]
    for method, published in found["published"].items():
        row = found["methods"][method]
        table.add_row(
            method,
            f"{published['cfr_before']:.1%} → {before:.1%}",
            f"{published['cfr_after']:.1%} → {row['cfr']['mean']:.1%}",
            f"{published['drift']:.2f} → {row['drift_on_policy']['mean']:.2f}",
        )
    console.print(table)


def _wide() -> Console:
    """A pipe has no width of its own, and the tables need some."""
    from ares_stream.cli.terminal import Console

    return Console() if Console().is_terminal else Console(width=_PIPE_WIDTH)


def _bars() -> Progress:
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
    )

    from ares_stream.cli.terminal import Console

    console = Console(stderr=True)
    return Progress(
        TextColumn("{task.description:32}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        console=console,
        disable=not console.is_terminal,
    )


def _table(title: str, headings: Any) -> Table:
    from rich.table import Table

    table = Table(title=title)
    table.add_column("method")
    for heading in headings:
        table.add_column(heading, justify="right")
    return table


def _cell(name: str, value: float) -> str:
    return f"{value:.3f}" if name.startswith("drift") else f"{100 * value:.1f}"


class _Tasks:
    """One bar for all jobs and one for each that runs."""

    def __init__(self, progress: Progress, jobs: int) -> None:
        self._progress = progress
        self._whole = progress.add_task("jobs", total=jobs)
        self._running: dict[tuple[int, str], Any] = {}

    def __call__(self, step: Step) -> None:
        key = (step.seed, step.method)
        if key not in self._running:
            self._running[key] = self._progress.add_task("", total=step.total)
        self._progress.update(
            self._running[key],
            description=f"seed {step.seed} {step.method} {step.stage}",
            completed=step.done,
            total=step.total,
        )
        if step.stage == "done":
            self._progress.remove_task(self._running[key])
            self._progress.advance(self._whole)
