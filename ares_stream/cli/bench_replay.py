"""`ares bench replay`: what a replay costs, and whether its digests hold."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def replay(
    json_file: Annotated[Path, typer.Option("--json", help="The document to write.")],
    records: Annotated[int, typer.Option(min=2000, help="Records that are scored.")] = 20_000,
    kills: Annotated[int, typer.Option(min=1, help="SIGKILLs of one replay.")] = 20,
    seed: Annotated[int, typer.Option(help="Of the records and the kills.")] = 7,
) -> None:
    """Score records by the scorer on a real Kafka, replay them, and compare CPU time and digests.

    Exits 0; 1 when digests differ between workers or after kills; 2 for a wrong option.
    """
    import asyncio
    import tempfile

    from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    from ares_stream.cli.terminal import Console
    from ares_stream.files import check_outputs, write_document
    from ares_stream.lab.experiments.replaying import bench

    check_outputs({"--json": json_file}, {})
    console = Console(stderr=True)
    columns = (SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
    with (
        tempfile.TemporaryDirectory(prefix="ares-replay-") as scratch,
        Progress(*columns, console=console, disable=not console.is_terminal) as bar,
    ):
        task = bar.add_task("starting", total=None)
        found = asyncio.run(
            bench(
                Path(scratch), records=records, kills=kills, seed=seed,
                step=lambda text: bar.update(task, description=text),
            )
        )  # fmt: skip
    write_document(json_file, found)
    costs, times = found["microseconds_per_record"], found["times_the_live_rate"]
    typer.echo(
        f"live {costs['live']} µs of CPU per record, replay {costs['replay']} µs "
        f"({times['replay']} times the rate), without models {costs['replay_without_models']} µs "
        f"({times['replay_without_models']}); "
        + ("one digest" if found["one_digest"] else "DIGESTS DIFFER")
        + f" for 1, 2 and 4 workers and after {found['kills']['kills']} kills"
    )
    raise typer.Exit(0 if found["one_digest"] else 1)
