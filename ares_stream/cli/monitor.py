"""`ares monitor`: the service that keeps rates and raises alarms."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Annotated

import typer


def command(
    settings_file: Annotated[
        Path | None, typer.Option("--settings", help="YAML file; the environment wins over it.")
    ] = None,
) -> None:
    """Follow verdicts and labels until SIGTERM; write rates and alarms.

    Start as many as you like: one leads, the others wait. Its state is on the rates topic, so
    that a restart or a replay gives the same figures.

    Exits 0 when stopped, 2 for wrong settings or topics, 3 when Kafka stays unreachable.
    """
    from ares_stream.services.lifecycle import serve
    from ares_stream.services.monitor import MonitorService
    from ares_stream.services.settings import load_settings

    settings = load_settings(settings_file)
    serve(partial(MonitorService, settings), settings, "monitor")
