"""`ares map try`: what a mapping makes of a sample of your own records."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(no_args_is_help=True, help="Read your own JSON as interactions.")

_SHOWN = 60


@app.callback()
def _group() -> None: ...


@app.command("try")
def try_(
    file: Annotated[Path, typer.Argument(help="JSON lines, or - for standard input.")],
    mapping: Annotated[Path, typer.Option("--map", help="YAML of JMESPath expressions.")],
    limit: Annotated[int, typer.Option(min=1, max=10_000, help="Lines to try.")] = 5,
) -> None:
    """Show each line's interaction, text shortened. Exit 1 if a line does not map."""
    from rich.console import Console
    from rich.table import Table

    from ares_stream.errors import InputError
    from ares_stream.files import open_lines
    from ares_stream.records.decoding import DecodingLimits, decode_interaction
    from ares_stream.records.mapping import load_mapping

    rules = load_mapping(mapping)
    console = Console()
    bad = 0
    with open_lines(file) as lines:
        for number, line in lines:
            if number > limit:
                break
            table = Table(title=f"line {number}", title_justify="left", show_header=False)
            table.add_column(style="bold")
            table.add_column(overflow="fold")
            try:
                interaction = decode_interaction(
                    f"line-{number}".encode(), line, (), DecodingLimits(), rules, timestamp_ms=0
                )
            except InputError as error:
                bad += 1
                table.add_row("[red]does not map[/red]", str(error))
            else:
                for name, value in interaction.model_dump(exclude_none=True).items():
                    table.add_row(name, _shorten(value))
            console.print(table)
    if bad:
        typer.echo(f"{bad} of the lines tried do not map", err=True)
        raise typer.Exit(1)


def _shorten(value: object) -> str:
    from rich.markup import escape

    text = value if isinstance(value, str) else repr(value)
    text = " ".join(text.split())
    return escape(text if len(text) <= _SHOWN * 3 else f"{text[: _SHOWN * 3]}… ({len(text)})")
