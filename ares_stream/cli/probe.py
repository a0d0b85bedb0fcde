"""`ares probe`: campaigns of probes, and other tools' formats."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(no_args_is_help=True, help="Search for coupled failures; import and export.")


@app.command("import")
def import_(
    form: Annotated[
        str, typer.Argument(metavar="FORMAT", help="garak|pyrit|harmbench|jailbreakbench|evals")
    ],
    file: Annotated[Path, typer.Argument(help="The other tool's file.")],
    taxonomy: Annotated[
        Path | None, typer.Option(help="Write the prompts as a taxonomy to search around.")
    ] = None,
    conversations: Annotated[
        Path | None, typer.Option(help="Write answered prompts as JSON lines for `ares scan`.")
    ] = None,
) -> None:
    """Read prompts and answers that another red-teaming tool collected.

    Exit code 2: the file is not of the format (the message names line and field), or there is
    nothing to write.
    """
    import datetime

    import yaml

    from ares_stream.errors import SettingsError
    from ares_stream.interchange.seeds import as_interactions, as_taxonomy, read_seeds
    from ares_stream.lines import written_whole

    if taxonomy is None and conversations is None:
        raise SettingsError("nothing to write; give --taxonomy, --conversations or both")
    seeds = read_seeds(file, form)
    several = sum(sum(turn.role == "user" for turn in seed.messages) > 1 for seed in seeds)
    distinct = len({seed.id for seed in seeds})
    typer.echo(f"{len(seeds):,} entries, {distinct:,} different prompts")
    if taxonomy is not None:
        with written_whole(taxonomy) as stream:
            content = yaml.safe_dump(as_taxonomy(seeds), sort_keys=False, allow_unicode=True)
            stream.write(content.encode())
        if several:
            typer.echo(f"{several:,} entries have several user turns: the last one is the seed")
        typer.echo(f"taxonomy: {taxonomy}")
    if conversations is not None:
        at = datetime.datetime.fromtimestamp(int(file.stat().st_mtime), datetime.UTC)
        answered = [item.encode() + b"\n" for item in as_interactions(seeds, form, at)]
        if not answered:
            raise SettingsError(f"{file}: holds no answer; only --taxonomy can be written of it")
        with written_whole(conversations) as stream:
            stream.writelines(answered)
        typer.echo(f"conversations: {conversations}, {len(answered):,} lines")


@app.command("export")
def export_(
    form: Annotated[str, typer.Argument(metavar="FORMAT", help="inspect|evals-log|evals-samples")],
    record: Annotated[Path, typer.Argument(help="A campaign's record; see `ares probe run`.")],
    out: Annotated[Path, typer.Argument(help="The file to write.")],
    campaign: Annotated[
        str | None, typer.Option(help="Which campaign, where the record holds several.")
    ] = None,
) -> None:
    """Write a campaign as another tool's log.

    Exit code 2: the record cannot be read (the message names line and field).
    """
    from ares_stream.interchange.exports import export
    from ares_stream.interchange.record import read_record

    exchanges = [item for item in read_record(record) if campaign in (None, item.probe.campaign)]
    export(exchanges, form, out)
    typer.echo(f"{out}: {len(exchanges):,} queries")
