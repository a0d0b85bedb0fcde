"""`ares repairer`: the service that repairs."""

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
    """Wait for coupled failures on Kafka, repair from them, release what passes the gate.

    Exits 0 when stopped, 2 for wrong settings, bundles or topics, 3 when Kafka stays unreachable.
    """
    from ares_stream.services.lifecycle import serve
    from ares_stream.services.repairer import Repairer
    from ares_stream.services.settings import load_settings

    settings = load_settings(settings_file)
    serve(partial(Repairer, settings), settings, "repairer")
