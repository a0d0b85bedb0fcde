"""`ares bench chaos`: faults thrown at scorers and their broker, and the count afterwards."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer


def chaos(
    json_file: Annotated[Path, typer.Option("--json", help="The document to write.")],
    seed: Annotated[int, typer.Option(help="Order, moments and victims of the faults.")] = 1,
    profile: Annotated[
        Literal["short", "full"], typer.Option(help="Each fault once, or five times.")
    ] = "short",
    fault: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME", help="Only this one, such as 'broker killed'; repeat for several."
        ),
    ] = None,
) -> None:
    """Throw faults at two scorers and an embedded broker under traffic, then account for every
    record with another client library.

    Exits 0; 1 when a record was lost, doubled, out of order or otherwise wrong, a partition did
    not move on, or a scorer did not end as it should.
    """
    import asyncio
    import importlib.util
    import tempfile

    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

    from ares_stream.cli.terminal import Console
    from ares_stream.errors import SettingsError
    from ares_stream.files import check_outputs, write_document

    check_outputs({"--json": json_file}, {})
    for module, extra in (("confluent_kafka", "bench"), ("onnx", "repair"), ("jgo", "broker")):
        if importlib.util.find_spec(module) is None:
            raise SettingsError(
                f"this benchmark needs the extra `{extra}`: pip install 'ares-stream[{extra}]'"
            )
    from ares_stream.lab.experiments.chaos.run import FAULTS, run
    from ares_stream.lab.experiments.chaos.scorers import ScorerEnded

    if unknown := [name for name in fault or () if name not in FAULTS]:
        raise SettingsError(f"--fault: {unknown[0]!r} is none of: {', '.join(FAULTS)}")
    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    with (
        tempfile.TemporaryDirectory(prefix="ares-chaos-") as folder,
        Progress(*columns, console=console, disable=not console.is_terminal) as bar,
    ):
        task = bar.add_task("starting", total=None)

        def show(stage: str, done: int, total: int) -> None:
            bar.update(task, description=stage, completed=done, total=total)

        try:
            found = asyncio.run(run(profile, seed, Path(folder), show, chosen=fault or ()))
        except* (TimeoutError, ScorerEnded) as group:
            typer.echo(f"{group.exceptions[0]}", err=True)
            raise typer.Exit(1) from None
    write_document(json_file, found)
    counts = found["counts"]
    typer.echo(
        f"{counts['inputs']:,} records, {len(found['plan'])} faults: {counts['verdicts']:,} "
        f"verdicts, {counts['dead_letters']:,} dead letters"
    )
    for name, figures in found["recovery_seconds"].items():
        typer.echo(
            f"{name}: {figures['median_of_slowest_partition']:.1f} s until the slowest partition "
            f"moved on (median of {figures['faults']}), at most {figures['slowest']:.1f} s"
        )
    for name, figures in found["memory_mebibytes"].items():
        typer.echo(f"scorer {name}: {figures['idle']:.0f} MiB idle, {figures['peak']:.0f} at most")
    if found["violations"]:
        typer.echo(f"violated: {found['violations']}", err=True)
        raise typer.Exit(1)
    typer.echo(f"none lost, none doubled, all in order; {json_file}")
