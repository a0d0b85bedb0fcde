"""`ares probe`: campaigns of probes, and other tools' formats."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ares_stream.cli import probe_triggers

if TYPE_CHECKING:
    from ares_stream.streaming.unreadable import UnreadableRecord

_TOLD = 20
"""Skipped rows that are told with their reasons; all are counted."""

app = typer.Typer(no_args_is_help=True, help="Search for coupled failures; import and export.")
app.command("triggers")(probe_triggers.triggers)


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
    from ares_stream.files import check_outputs, written_whole
    from ares_stream.interchange.seeds import as_interactions, as_taxonomy, read_seeds

    if taxonomy is None and conversations is None:
        raise SettingsError("nothing to write; give --taxonomy, --conversations or both")
    check_outputs({"--taxonomy": taxonomy, "--conversations": conversations}, {"FILE": file})
    imported = read_seeds(file, form)
    seeds = imported.seeds
    several = sum(sum(turn.role == "user" for turn in seed.messages) > 1 for seed in seeds)
    distinct = len({seed.id for seed in seeds})
    for row in imported.skipped[:_TOLD]:
        typer.echo(f"{file}:{row.line}: skipped: {row.reason}", err=True)
    typer.echo(
        f"{len(seeds):,} entries, {distinct:,} different prompts, "
        f"{len(imported.skipped):,} rows skipped"
    )
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
    from ares_stream.files import check_outputs
    from ares_stream.interchange.exports import export
    from ares_stream.probes.record import read_record

    check_outputs({"OUT": out}, {"RECORD": record})
    exchanges = [item for item in read_record(record) if campaign in (None, item.probe.campaign)]
    export(exchanges, form, out)
    typer.echo(f"{out}: {len(exchanges):,} queries")


_Campaign = Annotated[Path, typer.Argument(help="The campaign, a YAML file.")]
_Settings = Annotated[
    Path | None, typer.Option("--settings", help="YAML file; the environment wins over it.")
]
_Prior = Annotated[Path | None, typer.Option(help="What another campaign learnt.")]


@app.command("run")
def run(
    campaign: _Campaign,
    settings_file: _Settings = None,
    prior: _Prior = None,
    record: Annotated[
        Path | None, typer.Option(help="Write every query with its verdict, JSON lines.")
    ] = None,
    patience: Annotated[
        float, typer.Option(min=1, help="Seconds without an answer or a verdict before it ends.")
    ] = 600.0,
) -> None:
    """Run a campaign to its end, with a progress bar; a scorer must be running.

    Stopped and started again, it goes on where it was. Exits 0 when the budget is spent, 2 for
    a wrong campaign, settings or topics, 3 when Kafka, the target or the scorer is gone.
    """
    import asyncio
    from collections import Counter

    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn
    from rich.progress import Progress as Bar

    from ares_stream.cli.terminal import Console
    from ares_stream.files import check_outputs
    from ares_stream.probes.plan import load_campaign
    from ares_stream.probes.prober import Prober, ProberObserver, ProberPolicy, campaign_record
    from ares_stream.probes.record import write_record
    from ares_stream.services.settings import load_settings
    from ares_stream.streaming.unreadable import PassedOver

    check_outputs(
        {"--record": record},
        {"CAMPAIGN": campaign, "--settings": settings_file, "--prior": prior},
    )
    settings = load_settings(settings_file)
    file = load_campaign(campaign, prior)
    plan = file.plan()
    console = Console(stderr=True)
    reworded: Counter[str] = Counter()

    async def work() -> Prober:
        target = file.target.open()
        attacker = file.attacker.open() if file.attacker else None
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[found]}"),
            TimeElapsedColumn(),
        )
        with Bar(*columns, console=console, disable=not console.is_terminal) as bar:
            task = bar.add_task("reading topics", total=plan.policy.budget, found="")

            class Watch(ProberObserver):
                def progress(self, progress: Any, components: Any) -> None:
                    found = f"{progress.failures} failures, {progress.unique} unlike"
                    bar.update(task, completed=progress.queries, found=found, description="asking")

                def paused(self, reason: str | None) -> None:
                    bar.update(task, description=f"waiting: {reason}" if reason else "asking")

                def reworded(self, kind: str, fault: str | None) -> None:
                    reworded[fault or "worded"] += 1

            policy = ProberPolicy(scorer_groups=settings.scorer_groups, patience_seconds=patience)
            prober = Prober(
                settings.kafka,
                plan,
                target,
                attacker=attacker,
                prefix=settings.topic_prefix,
                policy=policy,
                observer=Watch(),
            )
            try:
                await prober.run()
            finally:
                await target.aclose()
                if attacker is not None:
                    await attacker.aclose()
        if record is not None:
            exchanges = [
                item
                async for item in campaign_record(
                    settings.kafka, settings.topic_prefix, plan.id, PassedOver(_tell)
                )
            ]
            write_record(record, exchanges)
        return prober

    progress = asyncio.run(work()).progress
    typer.echo(
        f"{progress.campaign}: {progress.queries:,} queries, {progress.probes:,} probes, "
        f"{progress.failures:,} confirmed failures, {progress.unique:,} unlike, "
        f"{progress.void:,} earned nothing"
    )
    if file.attacker is not None:
        worded = reworded.pop("worded", 0)
        reasons = ", ".join(f"{name} {count:,}" for name, count in sorted(reworded.items()))
        typer.echo(
            f"attacker: {worded:,} probes worded, {reworded.total():,} left to the composer"
            + (f" ({reasons})" if reasons else "")
        )


@app.command("export-prior")
def export_prior_(
    campaign: _Campaign,
    out: Annotated[Path, typer.Argument(help="The JSON file to write.")],
    settings_file: _Settings = None,
    prior: _Prior = None,
) -> None:
    """Write what a campaign has learnt so far, for `--prior` of another.

    It is read from the topics; a campaign that runs is not disturbed.
    """
    import asyncio

    from ares_stream.files import check_outputs, write_document
    from ares_stream.probes.plan import export_prior, load_campaign
    from ares_stream.probes.prober import rebuild
    from ares_stream.services.settings import load_settings
    from ares_stream.streaming.unreadable import PassedOver

    check_outputs(
        {"OUT": out}, {"CAMPAIGN": campaign, "--settings": settings_file, "--prior": prior}
    )
    settings = load_settings(settings_file)
    plan = load_campaign(campaign, prior).plan()
    state = asyncio.run(rebuild(settings.kafka, settings.topic_prefix, plan, PassedOver(_tell)))
    document = export_prior(state)
    write_document(out, document)
    typer.echo(f"{out}: {len(document['harm']):,} features after {state.queries:,} queries")


def _tell(record: UnreadableRecord) -> None:
    typer.echo(f"passed over: {record}", err=True)
