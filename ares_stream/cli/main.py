"""The root of the `ares` command: one module of this folder per command.

A module holds either `app`, a typer group, or `command`, a function. A module is imported when its
command is asked for; what is slow to import (pydantic, aiokafka, onnxruntime, torch) is imported
inside the function that needs it.
"""

from __future__ import annotations

import importlib
import logging
import pathlib
import sys
from typing import Annotated, Any, NoReturn

import typer
from typer.core import TyperGroup

from ares_stream import __version__
from ares_stream.cli.examples import EXAMPLES
from ares_stream.errors import AresError, SettingsError

COMMANDS: tuple[tuple[str, str], ...] = (
    ("demo", "demo"),
    ("doctor", "doctor"),
    ("init", "init"),
    ("scorer", "scorer"),
    ("prober", "prober"),
    ("repairer", "repairer"),
    ("monitor", "monitor"),
    ("notary", "notary"),
    ("audit", "audit"),
    ("trace", "trace"),
    ("replay", "replay"),
    ("evidence", "evidence"),
    ("archive", "archive"),
    ("console", "console"),
    ("review", "review"),
    ("rates", "rates"),
    ("alarms", "alarms"),
    ("anchors", "anchors"),
    ("broker", "broker"),
    ("topics", "topics"),
    ("verdicts", "verdicts"),
    ("send", "send"),
    ("scan", "scan"),
    ("bundle", "bundle"),
    ("repair", "repair"),
    ("release", "release"),
    ("forecast", "forecast"),
    ("map", "map"),
    ("bench", "bench"),
    ("schemas", "schemas"),
    ("probe", "probe"),
    ("loop", "loop"),
)
"""(name, module of ares_stream.cli), in the order of the help page."""


class _Root(TyperGroup):
    """Imports a command when it is asked for; turns an AresError into one line on stderr and its
    exit code, and so a file that cannot be read or written."""

    def list_commands(self, ctx: Any) -> list[str]:
        """Names, in the order of the help page."""
        return [name for name, _ in COMMANDS]

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """The command of that name, or None."""
        module = dict(COMMANDS).get(cmd_name)
        if module is None:
            return None
        if cmd_name not in self.commands:
            self.commands[cmd_name] = _load(cmd_name, module)
        return self.commands[cmd_name]

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """The command that the words name; a wrong one is answered with the nearest."""
        if args and args[0] not in self.list_commands(ctx):
            for name in self.list_commands(ctx):
                self.get_command(ctx, name)
        return super().resolve_command(ctx, args)

    def main(self, *args: object, **kwargs: object) -> object:
        try:
            try:
                return super().main(*args, **kwargs)  # type: ignore[arg-type]
            finally:
                # What could not be written is told now, and not by the interpreter as it ends.
                sys.stdout.flush()
        except AresError as error:
            _end(str(error), error.exit_code)
        except (OSError, MemoryError) as error:
            from ares_stream.files import is_spent, of_machine

            if isinstance(error, OSError) and error.filename is None and not is_spent(error):
                raise  # Nothing in it tells a person what to do.
            told = of_machine(error)
            _end(str(told), told.exit_code)


def _end(reason: str, code: int) -> NoReturn:
    """The last line, behind what libraries said and was only counted so far."""
    for handler in logging.getLogger().handlers:
        handler.flush()
    typer.secho(f"ares: {reason}", err=True, fg="red")
    sys.exit(code)


def _load(name: str, module: str) -> Any:
    loaded = importlib.import_module(f"ares_stream.cli.{module}")
    if hasattr(loaded, "app"):
        group = loaded.app
    else:
        group = typer.Typer()
        group.command(name)(loaded.command)
    # Rich would take square brackets of the help for markup, and .3 s to be imported.
    group.rich_markup_mode = None
    group._add_completion = False
    command = typer.main.get_command(group)
    command.name = name
    _add_examples(command, name)
    return command


def _add_examples(command: Any, path: str) -> None:
    if isinstance(command, TyperGroup):
        for name, child in command.commands.items():
            _add_examples(child, f"{path} {name}")
        return
    if path in EXAMPLES:
        command.epilog = f"\b\nExample:\n  {EXAMPLES[path]}"


app = typer.Typer(
    cls=_Root,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"max_content_width": 100},
    help=__doc__,
)


def _version(show: bool) -> None:
    if show:
        typer.echo(f"ares-stream {__version__}")
        raise typer.Exit


@app.callback(help="Find and repair coupled failures of a policy and its reward model.")
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    try:
        pathlib.Path.cwd()
    except OSError:
        # Whatever takes a relative path would fail, each thing at another place.
        raise SettingsError(
            "the folder that this was started in is gone or closed to this user: `cd` to another"
        ) from None
