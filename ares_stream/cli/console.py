"""`ares console`: the service in which people decide."""

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
    """Serve the review console until SIGTERM: queue, labels, releases, alarms.

    console.identity says who may come in; see docs/review.md. One replica serves: who holds
    which item is known to the process.

    Exits 0 when stopped, 2 for wrong settings or topics, 3 when Kafka stays unreachable.
    """
    from ares_stream.services.console import ConsoleService
    from ares_stream.services.lifecycle import serve
    from ares_stream.services.settings import load_settings

    settings = load_settings(settings_file)
    serve(partial(ConsoleService, settings), settings, "console")
