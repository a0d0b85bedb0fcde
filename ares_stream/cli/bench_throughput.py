"""`ares bench throughput`: what a verdict costs, beside a raw loop and beside other frameworks."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

import typer

Name = Literal[
    "quick",
    "full",
    "partitions",
    "latency",
    "backlogs",
    "sizes",
    "processes",
    "chats",
    "chats-latency",
    "files",
]


def throughput(
    json_file: Annotated[Path, typer.Option("--json", help="The document to write.")],
    profile: Annotated[
        Name,
        typer.Option(help="Six minutes on two cores; 25 for the full one; or a part of that."),
    ] = "quick",
    peers: Annotated[
        Path | None,
        typer.Option(
            help="Folder of the environment with benchmarks/requirements-peers.txt; without it "
            "only a transactional loop of confluent-kafka takes part."
        ),
    ] = None,
    markdown: Annotated[Path | None, typer.Option(help="The tables, for a page.")] = None,
    models: Annotated[
        Path, typer.Option(help="Where the models of the measurement are kept.")
    ] = Path("build/bench"),
) -> None:
    """Measure the scorer from topic to visible verdict, in turns with its peers: CPU time per
    record, rates, latency at steady rates, start and memory; and `ares scan` beside a plain loop.

    Exits 0; 1 when a contestant stops; 2 for a wrong option.
    """
    import importlib.util
    import tempfile

    from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    from ares_stream.cli.terminal import Console
    from ares_stream.errors import ScoringError, SettingsError
    from ares_stream.files import check_outputs, write_document, written_whole

    check_outputs({"--json": json_file, "--markdown": markdown}, {})
    for module, extra in (("confluent_kafka", "bench"), ("onnx", "repair"), ("jgo", "broker")):
        if importlib.util.find_spec(module) is None:
            raise SettingsError(
                f"this benchmark needs the extra `{extra}`: pip install 'ares-stream[{extra}]'"
            )
    python = None if peers is None else peers / "bin" / "python"
    if python is not None and not python.exists():
        raise SettingsError(f"--peers {peers}: no environment, {python} is missing")
    from ares_stream.lab.experiments.throughput.profiles import PROFILES
    from ares_stream.lab.experiments.throughput.report import environment, lines, tables
    from ares_stream.lab.experiments.throughput.run import Bench

    console = Console(stderr=True)
    with (
        tempfile.TemporaryDirectory(prefix="ares-throughput-") as scratch,
        Progress(
            SpinnerColumn(),
            TextColumn("{task.description}"),
            TimeElapsedColumn(),
            console=console,
            disable=not console.is_terminal,
        ) as bar,
    ):
        task = bar.add_task("starting", total=None)
        bench = Bench(
            models,
            Path(scratch),
            peers_python=python,
            progress=lambda stage: bar.update(task, description=stage),
        )
        try:
            found = bench.run(PROFILES[profile])
        except (ScoringError, TimeoutError) as error:
            typer.echo(f"{error}", err=True)
            raise typer.Exit(1) from None
    document: dict[str, Any] = {
        "schema": "ares.throughput-bench/1",
        "profile": profile,
        "environment": environment(python),
        **found,
    }
    write_document(json_file, document)
    if markdown is not None:
        with written_whole(markdown) as stream:
            stream.write(tables(document).encode())
    for line in lines(document):
        typer.echo(line)
    typer.echo(f"{json_file}")
