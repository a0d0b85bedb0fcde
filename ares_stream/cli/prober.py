"""`ares prober`: the service that runs a campaign."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Annotated

import typer


def command(
    campaign: Annotated[
        Path, typer.Argument(envvar="ARES_CAMPAIGN", help="The campaign, a YAML file.")
    ],
    settings_file: Annotated[
        Path | None, typer.Option("--settings", help="YAML file; the environment wins over it.")
    ] = None,
    prior: Annotated[
        Path | None, typer.Option(help="What another campaign learnt; see export-prior.")
    ] = None,
) -> None:
    """Probe a policy until SIGTERM; start again after a crash and it goes on where it was.

    Exits 0 when stopped, 2 for a wrong campaign, settings or topics, 3 when Kafka stays
    unreachable or another process has taken the campaign over.
    """
    from ares_stream.probes.plan import load_campaign
    from ares_stream.services.lifecycle import serve
    from ares_stream.services.prober import ProberService
    from ares_stream.services.settings import load_settings

    settings = load_settings(settings_file)
    loaded = load_campaign(campaign, prior)
    serve(partial(ProberService, settings, loaded), settings, "prober")
