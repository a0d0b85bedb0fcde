"""`ares forecast`: what a candidate would do in production, and how right that was."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NamedTuple

import typer

from ares_stream.cli.options import SettingsFile

if TYPE_CHECKING:
    from rich.progress import TaskID

    from ares_stream.audit.ranges import RangeReader
    from ares_stream.probes.targets import Target
    from ares_stream.records.forecast import Forecast
    from ares_stream.records.interaction import Policy
    from ares_stream.services.forecast import Models, Request
    from ares_stream.services.settings import Settings

app = typer.Typer(
    no_args_is_help=True, help="What a candidate would do in production, and how right that was."
)


class Endpoint(NamedTuple):
    """Who answers in a candidate's place: its own adapter, where no URL is given."""

    url: str | None
    model: str | None
    key_file: Path | None
    patience: float
    """Seconds without any answer."""


Json = Annotated[bool, typer.Option("--json", help="JSON on stdout.")]


@app.command()
def make(
    selector: Annotated[
        str, typer.Argument(help="A plan's id, or the first 8 or more digits of a digest.")
    ],
    since: Annotated[datetime | None, typer.Option(help="Production from this UTC time.")] = None,
    until: Annotated[datetime | None, typer.Option(help="Production before this UTC time.")] = None,
    by: Annotated[
        list[str] | None,
        typer.Option(
            "--slice",
            metavar="ATTRIBUTE",
            help="Also its values; repeat for several. [monitor.slices]",
        ),
    ] = None,
    each: Annotated[
        int, typer.Option("--prompts", min=1, help="Drawn of each combination of the slices.")
    ] = 400,
    seed: Annotated[int, typer.Option(min=0, help="Another seed draws other prompts.")] = 0,
    base: Annotated[
        Path | None,
        typer.Option(help="The policy's checkpoint. [repairer.recipe.policy]"),
    ] = None,
    target: Annotated[
        str | None,
        typer.Option(
            metavar="URL", help="An OpenAI-compatible endpoint that serves the candidate."
        ),
    ] = None,
    target_model: Annotated[
        str | None, typer.Option(help="The model's name there; the candidate's by default.")
    ] = None,
    api_key_file: Annotated[Path | None, typer.Option(help="The endpoint's key.")] = None,
    patience: Annotated[
        float,
        typer.Option(
            min=1.0, help="Seconds without any answer of the endpoint after which to give up."
        ),
    ] = 120.0,
    serves: Annotated[
        str | None,
        typer.Option(
            metavar="NAME:VERSION",
            help="How production's records will call it; by default the release's model and the "
            "first 12 digits of its digest.",
        ),
    ] = None,
    max_tokens: Annotated[int, typer.Option(min=1, help="Of an answer.")] = 256,
    temperature: Annotated[float, typer.Option(min=0.0, help="As in production.")] = 0.7,
    batch: Annotated[int, typer.Option(min=1, help="Answers made together here.")] = 16,
    answers: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Keep answers here, with their text: after a kill nothing is asked twice.",
        ),
    ] = None,
    archive: Annotated[
        str | None, typer.Option(metavar="URL", help="Read `ares archive`'s files, not topics.")
    ] = None,
    who: Annotated[
        str | None, typer.Option("--by", help="Who asks; the user's name by default.")
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Count and draw, ask nobody, keep nothing.")
    ] = False,
    offline: Annotated[
        bool, typer.Option("--offline", help="Change the registry only; announce later.")
    ] = False,
    settings_file: SettingsFile = None,
    as_json: Json = False,
) -> None:
    """Have a candidate answer prompts of production, score its answers, and keep what was found
    with the release.

    Exits 0; 1 for a release that is no candidate; 2 for wrong settings, a missing topic or too few
    prompts; 3 where a range cannot be read whole, or the candidate does not answer.
    """
    import json

    from ares_stream.audit.forecast import forecast_lines
    from ares_stream.services.forecast import Request
    from ares_stream.services.settings import load_settings

    settings = load_settings(settings_file)

    def milliseconds(time: datetime | None) -> int | None:
        return None if time is None else int(time.replace(tzinfo=UTC).timestamp() * 1000)

    request = Request(
        since_ms=milliseconds(since),
        until_ms=milliseconds(until),
        by=settings.monitor.slices if by is None else tuple(by),
        each=each,
        seed=seed,
        serves=None if serves is None else _policy(serves),
        base=base,
        max_tokens=max_tokens,
        temperature=temperature,
        batch=batch,
        answers=answers,
    )
    asked = Endpoint(target, target_model, api_key_file, patience)
    forecast = run(
        settings, selector, request, asked, archive=archive, who=who, dry_run=dry_run,
        offline=offline,
    )  # fmt: skip
    if forecast is None:
        return
    if as_json:
        typer.echo(json.dumps(forecast.model_dump(mode="json", exclude_none=True), indent=2))
    else:
        for line in forecast_lines(forecast):
            typer.echo(line)


def run(
    settings: Settings,
    selector: str,
    request: Request,
    asked: Endpoint | None = None,
    *,
    archive: str | None = None,
    who: str | None = None,
    dry_run: bool = False,
    offline: bool = False,
) -> Forecast | None:
    """Make a forecast, keep it with the release and beside the repair's card, and announce it;
    None of a dry run. `asked` is the endpoint that serves the candidate."""
    import asyncio
    import getpass

    from ares_stream.audit.archive import ArchiveReader
    from ares_stream.audit.ranges import TopicReader
    from ares_stream.models.releases import Author
    from ares_stream.repair.rundirectory import RunDirectory

    reader = TopicReader(settings.kafka) if archive is None else ArchiveReader(archive)
    forecast = asyncio.run(_forecast(settings, reader, request, selector, asked, dry_run=dry_run))
    if forecast is None:
        return None
    author = Author(
        who or getpass.getuser(),
        datetime.now(UTC),
        f"forecast from {forecast.overall.sampled} prompts of production",
    )
    kept = settings.registry.store().forecast(selector, forecast, author)
    for plan in {item.plan_id for item in kept if item.plan_id}:
        directory = RunDirectory(settings.repairer.work / plan)
        if directory.path.is_dir():
            directory.forecast.write(forecast)
    if not offline:
        from ares_stream.models.announcing import announce_topic
        from ares_stream.records.topics import RELEASES, topic_name

        topic = topic_name(settings.topic_prefix, RELEASES)
        asyncio.run(announce_topic(settings.kafka, topic, settings.registry.store().log()))
    return forecast


async def _forecast(
    settings: Settings,
    reader: RangeReader,
    request: Request,
    selector: str,
    asked: Endpoint | None,
    *,
    dry_run: bool,
) -> Forecast | None:
    import asyncio
    from tempfile import TemporaryDirectory

    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    from ares_stream.audit.kept_answers import KeptAnswers
    from ares_stream.cli.terminal import Console
    from ares_stream.services.forecast import (
        make_forecast,
        models_of,
        read_production,
    )

    bar = Progress(
        TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(),
        console=Console(stderr=True),
    )  # fmt: skip
    stages: dict[str, TaskID] = {}

    def progress(stage: str, done: int, total: int) -> None:
        if stage not in stages:
            stages[stage] = bar.add_task(stage, total=total)
        bar.update(stages[stage], completed=done, total=total)

    with TemporaryDirectory(prefix="ares-forecast-") as cache, bar:
        # What is wrong with the candidate is said before a month is read.
        store = settings.registry.store()
        models = await asyncio.to_thread(models_of, settings, store, selector, Path(cache))
        production, found = await read_production(settings, reader, request, progress)
        if dry_run:
            drawn = found.sample.drawn()
            typer.echo(
                f"{found.read:,} records, {found.sample.seen:,} prompts; {len(drawn):,} would be "
                f"answered ({found.undecodable:,} records are no interactions)"
            )
            return None
        target = await asyncio.to_thread(_target, settings, models, request, asked)
        if target is not None and request.answers is not None:
            target = KeptAnswers(target, request.answers)
        try:
            return await make_forecast(
                settings, models, target, production, found, request, datetime.now(UTC), progress
            )
        finally:
            if target is not None:
                await target.aclose()


def _target(
    settings: Settings,
    models: Models,
    request: Request,
    asked: Endpoint | None,
) -> Target | None:
    """An endpoint where one is named, else the candidate's own adapter."""
    from ares_stream.probes.plan import EndpointSection
    from ares_stream.services.forecast import local_target

    if asked is None or asked.url is None:
        return local_target(settings, models, request)
    return EndpointSection(
        url=asked.url,
        model=asked.model or models.serves.name,
        version=models.serves.version,
        api_key_file=asked.key_file,
        patience_seconds=asked.patience,
        max_tokens=request.max_tokens,
        temperature=request.temperature,
    ).open("--target")


def _policy(name: str) -> Policy:
    from ares_stream.errors import SettingsError
    from ares_stream.records.interaction import Policy

    model, colon, version = name.partition(":")
    if not (model and colon and version):
        raise SettingsError(f"--serves {name}: expected NAME:VERSION")
    return Policy(name=model, version=version)


@app.command()
def errors(settings_file: SettingsFile = None, as_json: Json = False) -> None:
    """How far off the forecasts of released candidates were, by what the monitor measured since.

    `ratio` is forecast over measured; below the forecast's floor both count as the floor. A
    direction is right where the figure has moved from before as was forecast; it has none below a
    factor of 1.5. Releases that have fewer than 100 verdicts in production are left out.

    Exits 0; 2 for wrong settings or no rates topic; 3 when Kafka cannot be reached.
    """
    import asyncio
    import json

    from ares_stream.cli.rates import read_rates
    from ares_stream.services.forecast import as_json as document
    from ares_stream.services.forecast import forecast_errors
    from ares_stream.services.settings import load_settings

    settings = load_settings(settings_file)
    _, rates, _ = asyncio.run(read_rates(settings))
    rows = forecast_errors(settings.registry.store().log(), rates)
    if as_json:
        typer.echo(json.dumps(document(rows), indent=2))
        return
    if not rows:
        typer.echo("no release with a forecast has 100 verdicts in production yet")
    for release, found in rows:
        typer.echo(f"{release.kind} {release.model} {release.digest[:12]} {release.state.value}")
        for error in found:
            typer.echo(
                f"  {error.place or 'all'}: {error.figure} {error.forecast.value:.2%} forecast, "
                f"{error.measured.value:.2%} measured ({error.observed.value:.2%} before): "
                f"ratio {error.ratio:.2f}, direction {error.direction}"
            )
            for mix in error.remixes:
                unseen = f"; {mix.unseen:.1%} of it was never seen" if mix.unseen else ""
                typer.echo(
                    f"    for the mix of {mix.attribute} that came: {mix.forecast.value:.2%} "
                    f"forecast, ratio {mix.ratio:.2f}{unseen}"
                )
