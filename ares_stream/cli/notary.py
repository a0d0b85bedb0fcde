"""`ares notary`: the service that signs what the topics hold."""

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
    """Grow a Merkle tree of each partition of the output topics and sign its heads, until SIGTERM.

    Start as many as you like: one leads, the others wait. What it has signed is on the
    checkpoints topic; `ares audit` proves from it.

    Exits 0 when stopped, 2 for wrong settings or topics, 3 when Kafka stays unreachable.
    """
    from ares_stream.services.lifecycle import serve
    from ares_stream.services.notary import NotaryService
    from ares_stream.services.settings import load_settings

    settings = load_settings(settings_file)
    serve(partial(NotaryService, settings), settings, "notary")
