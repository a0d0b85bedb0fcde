"""`ares bench audit`: is every alteration of a notarised topic found, where it was made?"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def audit(
    json_file: Annotated[Path, typer.Option("--json", help="The document to write.")],
    alterations: Annotated[int, typer.Option(min=6, help="Random alterations.")] = 1000,
    records: Annotated[int, typer.Option(min=200, help="Records of a partition.")] = 1000,
    seed: Annotated[int, typer.Option(help="Of the alterations.")] = 7,
) -> None:
    """Alter notarised partitions at random, verify each, and count what is found and located.

    Exits 0; 1 when an alteration is missed or what is unaltered is named; 2 for a wrong file.
    """
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    from ares_stream.cli.terminal import Console
    from ares_stream.files import check_outputs, write_document
    from ares_stream.lab.experiments.alterations import bench

    check_outputs({"--json": json_file}, {})
    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, disable=not console.is_terminal) as bar:
        task = bar.add_task("alterations", total=alterations)
        found = bench(
            alterations=alterations, count=records, seed=seed, progress=lambda: bar.advance(task)
        )
    write_document(json_file, found)
    typer.echo(
        f"located {found['located']} of {found['made']} alterations, {found['false_alarms']} false "
        f"alarms; {found['leaves_per_second']['grow']} leaves/s grown and "
        f"{found['leaves_per_second']['verify']} verified on a core; a proof is "
        f"{found['proof']['bytes_without_record']} bytes beside its record"
    )
    raise typer.Exit(0 if found["located"] == found["made"] and not found["false_alarms"] else 1)
