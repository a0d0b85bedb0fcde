"""Options that many commands have, with one wording."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

SettingsFile = Annotated[
    Path | None, typer.Option("--settings", help="YAML; the environment wins over it.")
]
Bootstrap = Annotated[str | None, typer.Option(help="host:port,... instead of the settings'.")]
