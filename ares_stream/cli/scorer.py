"""`ares scorer`: the service that scores interactions."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Annotated

import typer


def command(
    settings_file: Annotated[
        Path | None, typer.Option("--settings", help="YAML file; the environment wins over it.")
    ] = None,
    accept_dead_letters: Annotated[
        bool,
        typer.Option(
            "--accept-dead-letters",
            help="Go on however much is refused: what is refused is in the dead-letter topic.",
        ),
    ] = False,
) -> None:
    """Score interactions from Kafka until SIGTERM, then drain.

    Exits 0 when stopped, 2 for wrong settings, bundles or topics, 3 when Kafka stays
    unreachable or the dead-letter breaker opens.
    """
    from ares_stream.services.lifecycle import serve
    from ares_stream.services.scorer import Scorer, settle_seconds
    from ares_stream.services.settings import load_settings

    settings = load_settings(settings_file)
    if accept_dead_letters:
        breaker = settings.scorer.breaker.model_copy(update={"accept_dead_letters": True})
        scorer = settings.scorer.model_copy(update={"breaker": breaker})
        settings = settings.model_copy(update={"scorer": scorer})
    serve(partial(Scorer, settings), settings, "scorer", settle_seconds=settle_seconds(settings))
