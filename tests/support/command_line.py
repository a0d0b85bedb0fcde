"""Whether `ares` takes a line of words, without running it."""

from __future__ import annotations

from collections.abc import Sequence

import typer.main
from typer.core import TyperGroup

from ares_stream.cli.main import app


def parses(line: Sequence[str]) -> None:
    """Raise where `ares` does not take these words."""
    words = list(line)
    command = typer.main.get_command(app)
    context = command.make_context("ares", [], resilient_parsing=True)
    while isinstance(command, TyperGroup):
        found = command.get_command(context, words[0])
        assert found is not None, words
        command, words = found, words[1:]
        context = command.make_context(words[0] if words else "x", [], resilient_parsing=True)
    command.make_parser(context).parse_args(words)
