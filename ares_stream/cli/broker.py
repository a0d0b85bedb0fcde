"""`ares broker`: a real Apache Kafka on this machine, for as long as the command runs."""

from __future__ import annotations

import signal
import threading
from contextlib import suppress
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
    running = False

    def end(*_: object) -> None:
        stop.set()
        if not running:
            raise _Stopped

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, end)
    with suppress(_Stopped):
        typer.echo("starting Kafka", err=True)
        with EmbeddedBroker(nodes=nodes, data_dir=data_dir, port=port) as broker:
            running = True
            typer.echo(broker.bootstrap)
            typer.echo("running; Ctrl-C stops it", err=True)
            while not stop.wait(CHECK_SECONDS):
                broker.check()
    typer.echo("stopped", err=True)


class _Stopped(BaseException):
    """A signal while Kafka is fetched or starts, which may take minutes."""
