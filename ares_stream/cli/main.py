"""The root of the `ares` command: one module of this folder per command.

A module holds either `app`, a typer group, or `command`, a function. What is slow to import
(aiokafka, onnxruntime, torch) is imported inside the command that needs it.
"""

from __future__ import annotations

import importlib
import sys
from typing import Annotated

import typer

from ares_stream import __version__
from ares_stream.errors import AresError

COMMANDS: tuple[tuple[str, str], ...] = (
    ("demo", "demo"),
    ("scorer", "scorer"),
    ("prober", "prober"),
    ("repairer", "repairer"),
    ("broker", "broker"),
    ("topics", "topics"),
    ("scan", "scan"),
    ("bundle", "bundle"),
    ("repair", "repair"),
    ("release", "release"),
    ("map", "map"),
    ("bench", "bench"),
    ("schemas", "schemas"),
    ("probe", "probe"),
    ("loop", "loop"),
)
"""(name, module of ares_stream.cli), in the order of the help page."""


class _Root(typer.core.TyperGroup):
    """Turns an AresError into one line on stderr and its exit code."""

    def main(self, *args: object, **kwargs: object) -> object:
        try:
            return super().main(*args, **kwargs)  # type: ignore[arg-type]
        except AresError as error:
            typer.secho(f"ares: {error}", err=True, fg="red")
            sys.exit(error.exit_code)


app = typer.Typer(cls=_Root, no_args_is_help=True, pretty_exceptions_enable=False, help=__doc__)


def _version(show: bool) -> None:
    if show:
        typer.echo(f"ares-stream {__version__}")
        raise typer.Exit


@app.callback(help="Find and repair coupled failures of a policy and its reward model.")
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None: ...


for _name, _module in COMMANDS:
    _loaded = importlib.import_module(f"ares_stream.cli.{_module}")
    if hasattr(_loaded, "app"):
        app.add_typer(_loaded.app, name=_name)
    else:
        app.command(_name)(_loaded.command)
