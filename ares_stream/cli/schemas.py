"""`ares schemas`: JSON Schemas and the AsyncAPI document of everything on the topics."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(no_args_is_help=True, help="Write or check the schemas of all records.")

Directory = Annotated[Path, typer.Argument(metavar="DIR", help="Where the schema files are.")]


@app.command()
def write(
    directory: Directory,
    allow_breaking: Annotated[
        bool, typer.Option(help="Write even if today's readers or producers would break.")
    ] = False,
) -> None:
    """Write them; a change that breaks today's programs is refused with exit code 1."""
    from ares_stream.records.schemas import check_directory, write_directory

    if directory.is_dir():
        breaking = check_directory(directory).breaking
        if breaking and not allow_breaking:
            _say(breaking)
            typer.echo("not written: raise the record's schema version instead", err=True)
            raise typer.Exit(1)
    for name in write_directory(directory):
        typer.echo(directory / name)


@app.command()
def check(directory: Directory) -> None:
    """Exit 1 unless the files are what the code says; breaking changes are named."""
    from ares_stream.records.schemas import check_directory

    result = check_directory(directory)
    if result.same:
        typer.echo(f"{directory}: current")
        return
    _say(tuple(f"{name}: missing" for name in result.missing))
    _say(tuple(f"{name}: differs from the code" for name in result.outdated))
    _say(tuple(f"{name}: no record has this schema" for name in result.unknown))
    _say(tuple(f"{name}: {difference}" for name, difference in result.differences))
    typer.echo(f"run `ares schemas write {directory}` and commit, if this is meant", err=True)
    raise typer.Exit(1)


def _say(lines: tuple[str, ...]) -> None:
    for line in lines:
        typer.echo(line, err=True)
