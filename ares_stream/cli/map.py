"""`ares map try`: what a mapping makes of a sample of your own records."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from rich.table import Table

app = typer.Typer(no_args_is_help=True, help="Read your own JSON as interactions.")

_SHOWN = 60


@app.callback()
def _group() -> None: ...


@app.command("try")
def try_(
    file: Annotated[Path, typer.Argument(help="JSON lines, or - for standard input.")],
    mapping: Annotated[
        Path, typer.Option("--map", help="YAML of JMESPath expressions, or a preset.")
    ],
    limit: Annotated[int, typer.Option(min=1, max=10_000, help="Lines to try.")] = 5,
) -> None:
    """Show each line's interaction, text shortened. Exit 1 if a line does not map."""
    from rich.text import Text

    from ares_stream.cli.terminal import Console
    from ares_stream.errors import InputError, LeftOut
    from ares_stream.files import open_lines
    from ares_stream.records.decoding import DecodingLimits, decode_interactions
    from ares_stream.records.mapping import load_mapping

    rules = load_mapping(mapping)
    console = Console()
    bad = 0
    with open_lines(file) as lines:
        for number, line in lines:
            if number > limit:
                break
            try:
                found = decode_interactions(
                    f"line-{number}".encode(), line, (), DecodingLimits(), rules, timestamp_ms=0
                )
            except LeftOut:
                typer.echo(f"line {number}: left out by where")
                continue
            except InputError as error:
                bad += 1
                table = _table(f"line {number}")
                table.add_row(Text("does not map", style="red"), str(error))
                console.print(table)
                continue
            for place, interaction in enumerate(found, 1):
                several = f", conversation {place} of {len(found)}" if len(found) > 1 else ""
                table = _table(f"line {number}{several}")
                for name, value in interaction.model_dump(mode="json", exclude_none=True).items():
                    table.add_row(name, _shorten(value))
                console.print(table)
    if bad:
        typer.echo(f"{bad} of the lines tried do not map", err=True)
        raise typer.Exit(1)


def _table(title: str) -> Table:
    from rich.table import Table

    table = Table(title=title, title_justify="left", show_header=False)
    table.add_column(style="bold")
    table.add_column(overflow="fold")
    return table


def _shorten(value: object) -> str:
    text = value if isinstance(value, str) else repr(value)
    text = " ".join(text.split())
    return text if len(text) <= _SHOWN * 3 else f"{text[: _SHOWN * 3]}… ({len(text)})"
