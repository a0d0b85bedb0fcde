"""`ares bench repair --profile smollm2` and `ares bench probes --profile smollm2`: the same
questions put to a real policy."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from ares_stream.errors import SettingsError

if TYPE_CHECKING:
    from ares_stream.cli.terminal import Console

Profile = Annotated[str | None, typer.Option(help="Instead of the testbed a real policy: smollm2.")]
Data = Annotated[
    Path,
    typer.Option(envvar="ARES_SHARED_DATA", help="With --profile: the folder of the real texts."),
]
Quick = Annotated[
    bool, typer.Option("--quick", help="With --profile: little of everything, to see it run.")
]
DATA = Path("../shared/data")


def repair(
    json_file: Path | None,
    data: Path,
    profile: str,
    split: str,
    *,
    quick: bool,
    cache: Path | None,
) -> None:
    """Repair the real policy and print the figures."""
    from ares_stream.cli.terminal import Console
    from ares_stream.files import check_outputs, write_document

    check_outputs({"--json": json_file}, {})
    _known(profile)
    from ares_stream.lab.experiments.smollm2.repair import CACHE, FULL, QUICK, run

    chosen: Literal["dev", "test"] = "dev" if split == "dev" else "test"
    console = Console(stderr=True)
    with bars(console) as stage:
        found = run(data, QUICK if quick else FULL, stage, split=chosen, cache=cache or CACHE)
    if json_file is not None:
        write_document(json_file, found)
    show_repair(found, Console())


def probes(json_file: Path, data: Path, profile: str, *, quick: bool, cache: Path | None) -> None:
    """Search the real policy's failures and print what each method found."""
    from ares_stream.cli.terminal import Console
    from ares_stream.files import check_outputs, write_document

    check_outputs({"--json": json_file}, {})
    _known(profile)
    from ares_stream.lab.experiments.smollm2.probes import FULL, QUICK, run
    from ares_stream.lab.experiments.smollm2.repair import CACHE

    with bars(Console(stderr=True)) as stage:
        found = run(data, QUICK if quick else FULL, stage, cache=cache or CACHE)
    write_document(json_file, found)
    show_probes(found, Console())


def show_probes(found: dict[str, Any], console: Console) -> None:
    """What each method confirmed, and the difference seed by seed."""
    from rich.table import Table

    table = Table("figure", *found["methods"], "adaptive - uniform", title="mean of seeds, 95 %")
    for name, difference in found["adaptive_less_uniform"].items():
        rows = [row[name] for row in found["methods"].values()]
        table.add_row(name, *(_mean(item) for item in (*rows, difference)))
    console.print(table)


def _mean(item: dict[str, Any]) -> str:
    interval = "" if item["low"] is None else f" ({item['low']:.3f} to {item['high']:.3f})"
    return f"{item['mean']:.3f}{interval}"


def show_repair(found: dict[str, Any], console: Console) -> None:
    """Figures before and after, and what the gate says."""
    from rich.table import Table

    table = Table("figure", "before", "after", "of", title=f"held-out prompts ({found['split']})")
    for name, before in found["before"].items():
        after = found["after"][name]
        table.add_row(name, _cell(before), _cell(after), str(after["count"]))
    console.print(table)
    stream, safe = found["stream"], found["safe_answers"]
    console.print(f"stream: {stream['classes']}; safe answers: {safe}; plan: {found['plan']}")
    passed = "passed" if found["gate"]["passed"] else "rejected"
    console.print(f"gate: {passed}")
    for reason in found["gate"]["reasons"]:
        console.print(f"  {reason}")


def _cell(item: dict[str, float]) -> str:
    return f"{item['value']:.3f} ({item['low']:.3f} to {item['high']:.3f})"


def _known(profile: str) -> None:
    if profile != "smollm2":
        raise SettingsError(f"--profile {profile}: unknown; it is smollm2")


@contextmanager
def bars(console: Console) -> Iterator[Callable[[str], Callable[[int, int], None]]]:
    """A bar for each stage."""
    from rich.progress import MofNCompleteColumn, Progress, TimeElapsedColumn

    with Progress(
        *Progress.get_default_columns()[:2],
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        console=console,
    ) as progress:

        def stage(name: str) -> Callable[[int, int], None]:
            task = progress.add_task(name, total=None)
            return lambda done, total: progress.update(task, completed=done, total=total)

        yield stage
