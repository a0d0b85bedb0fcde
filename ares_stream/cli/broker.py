"""`ares broker`: a real Apache Kafka on this machine, for as long as the command runs."""

from __future__ import annotations

import signal
import threading
from pathlib import Path
from typing import Annotated

import typer

CHECK_SECONDS = 1.0


def command(
    port: Annotated[
        int | None, typer.Option(min=1, max=65535, help="Port of the first node; free by default.")
    ] = None,
    nodes: Annotated[int, typer.Option(min=1, max=3, help="Nodes of the cluster.")] = 1,
    data_dir: Annotated[
        Path | None,
        typer.Option(help="Keep topics here between runs; without it they are deleted at the end."),
    ] = None,
) -> None:
    """Run Apache Kafka here until Ctrl-C; prints the bootstrap address on stdout.

    Exits 0 when stopped, 2 for wrong options, 3 when Kafka dies or cannot be fetched.
    """
    from ares_stream.processes.broker import EmbeddedBroker

    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    typer.echo("starting Kafka", err=True)
    with EmbeddedBroker(nodes=nodes, data_dir=data_dir, port=port) as broker:
        typer.echo(broker.bootstrap)
        typer.echo("running; Ctrl-C stops it", err=True)
        while not stop.wait(CHECK_SECONDS):
            broker.check()
    typer.echo("stopped", err=True)
