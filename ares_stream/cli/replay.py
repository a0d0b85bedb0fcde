"""`ares replay`: score topics again."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from ares_stream.cli.options import Bootstrap, SettingsFile

if TYPE_CHECKING:
    from ares_stream.audit.notes import NoteSigner
    from ares_stream.audit.replay.spec import Selection
    from ares_stream.detection.decide import DetectionPolicy
    from ares_stream.services.replayer import ReplayOptions
    from ares_stream.services.settings import Settings
    from ares_stream.streaming.connection import KafkaConnection

Mode = Literal["proof", "what-if", "simulate"]
Provider = Literal["cpu", "cuda"]


def command(
    report: Annotated[Path, typer.Option("--json", help="The report to write.")],
    mode: Annotated[
        Mode,
        typer.Option(
            help="proof: by what the verdicts name; what-if: by others that you name; simulate: a "
            "candidate answers anew, as `ares forecast make`."
        ),
    ] = "proof",
    page: Annotated[Path | None, typer.Option("--html", help="The report for people.")] = None,
    work: Annotated[
        Path, typer.Option(help="Folder of what is done; a replay that was killed goes on there.")
    ] = Path("replay"),
    since: Annotated[datetime | None, typer.Option(help="From this UTC time on.")] = None,
    until: Annotated[datetime | None, typer.Option(help="Before this UTC time.")] = None,
    hours: Annotated[
        float | None,
        typer.Option(min=0.01, help="The last so many hours, in the place of --since."),
    ] = None,
    offsets: Annotated[
        list[str] | None,
        typer.Option(metavar="T:P:START-END", help="Topic, partition, offsets; repeatable."),
    ] = None,
    plan: Annotated[str | None, typer.Option(help="The failures of this repair's batch.")] = None,
    release: Annotated[
        str | None, typer.Option(help="From the first to the last verdict of this digest.")
    ] = None,
    archive: Annotated[
        str | None, typer.Option(help="Read this archive of `ares archive`, no topics.")
    ] = None,
    bundles: Annotated[
        list[Path] | None,
        typer.Option(
            "--bundle", metavar="PATH", help="A bundle beside those of registry and settings."
        ),
    ] = None,
    policies: Annotated[
        list[Path] | None,
        typer.Option(
            "--policy-file", metavar="FILE", help="A detection policy that was in use, YAML."
        ),
    ] = None,
    harm: Annotated[
        list[Path] | None,
        typer.Option(metavar="PATH", help="what-if: a judge in the place of theirs; repeatable."),
    ] = None,
    reward: Annotated[
        Path | None, typer.Option(help="what-if: a reward model in the place of theirs.")
    ] = None,
    policy: Annotated[
        Path | None, typer.Option(help="what-if: a detection policy in the place of theirs.")
    ] = None,
    by: Annotated[
        list[str] | None,
        typer.Option(metavar="ATTRIBUTE", help="what-if: also by this attribute; repeatable."),
    ] = None,
    candidate: Annotated[
        str | None,
        typer.Option(metavar="SELECTOR", help="simulate: a plan's id, or digits of a digest."),
    ] = None,
    tolerance: Annotated[
        float, typer.Option(min=0.0, max=0.1, help="By how much a model's number may differ.")
    ] = 1e-4,
    provider: Annotated[
        Provider | None, typer.Option(help="Where models run. [scorer.provider]")
    ] = None,
    workers: Annotated[
        int | None, typer.Option(min=1, max=256, help="Processes. [all cores]")
    ] = None,
    index: Annotated[
        int,
        typer.Option(
            min=0, envvar="JOB_COMPLETION_INDEX", help="Which part of the partitions, from 0."
        ),
    ] = 0,
    of: Annotated[int, typer.Option(min=1, help="How many parts, as of an indexed Job.")] = 1,
    sign: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Sign the report with this private key.")
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Count, and estimate time and cost; writes that.")
    ] = False,
    core_price: Annotated[
        float | None,
        typer.Option(
            "--core-price",
            min=0.0,
            metavar="PRICE",
            help="--dry-run: what an hour of one core costs you, in any currency.",
        ),
    ] = None,
    settings_file: SettingsFile = None,
    bootstrap: Bootstrap = None,
) -> None:
    """Score topics again: to prove every verdict, or to ask what others would have said.

    The settings are the scorer's: inputs, mappings, limits. Bundles come from the registry by the
    digests in the verdicts. Exits 0 when all is as recorded (and after what-if); 1 for a
    difference; 2 for a wrong option, or a bundle or policy that nobody has; 3 where a range cannot
    be read whole.
    """
    import asyncio
    import os
    import tempfile

    from ares_stream.audit.replay.work import Work
    from ares_stream.cli.topics import connect
    from ares_stream.errors import SettingsError
    from ares_stream.files import check_outputs, write_document
    from ares_stream.services.replayer import ReplayOptions, estimate, make_spec, replay

    note = note_of(report)
    check_outputs(
        {"--json": report, "--html": page, "--sign's note": note if sign else None},
        {"--sign": sign, "--settings": settings_file, "--policy": policy},
    )
    settings, connection = connect(settings_file, bootstrap)
    if mode == "simulate":
        window = (_milliseconds(since), _milliseconds(until))
        _simulate(settings, connection, candidate, window, by, archive, report, dry_run=dry_run)
        return
    signer = None if sign is None else signer_of(settings, sign)
    if hours is not None:
        if since is not None:
            raise SettingsError("--hours and --since: name one of the two")
        since = datetime.now(UTC) - timedelta(hours=hours)
    options = ReplayOptions(
        mode=mode,
        archive=archive,
        since_ms=_milliseconds(since),
        until_ms=_milliseconds(until),
        offsets=_ranges(offsets),
        plan=plan,
        release=release,
        bundles=tuple(bundles or ()),
        policies=tuple(_policy(file) for file in policies or ()),
        harm=tuple(harm or ()),
        reward=reward,
        policy=None if policy is None else _policy(policy),
        slices=tuple(by or ()),
        tolerance=tolerance,
        provider=provider,
        workers=workers or len(os.sched_getaffinity(0)),
        part=(index, of),
    )
    spec = make_spec(settings, connection, options)
    if dry_run:
        with tempfile.TemporaryDirectory(prefix="ares-replay-") as scratch:
            found = asyncio.run(estimate(settings, spec, options, Path(scratch)))
        hours = found["core_hours"]
        is_known = core_price is not None and hours is not None
        found["cost"] = round((core_price or 0.0) * hours, 4) if is_known else None
        write_document(report, found)
        typer.echo(f"{found['offsets']:,} offsets, about {_estimated(found)}")
        return
    document = _replayed(settings, spec, options, work, replay)
    code = write_report(document, report, page, signer)
    Work(work, spec.block).reported()
    raise typer.Exit(code)


def _estimated(found: dict[str, Any]) -> str:
    if found["seconds"] is None:
        return "time and cost unknown: the settings name no models, or nothing is there to sample"
    cost = "" if found["cost"] is None else f", a cost of {found['cost']:,}"
    return (
        f"{found['seconds']:,} s with {found['workers']} workers: {found['core_hours']:,} hours of "
        f"one core{cost}"
    )


def write_report(
    document: dict[str, Any], report: Path, page: Path | None, signer: NoteSigner | None
) -> int:
    """Write the report, its page and its note, and tell it; the exit code."""
    import json

    from ares_stream.audit.replay.report import lines
    from ares_stream.audit.replay.signing import sign as signed
    from ares_stream.files import written_whole

    raw = json.dumps(document, indent=1).encode() + b"\n"
    with written_whole(report) as out:
        out.write(raw)
    if signer is not None:
        with written_whole(note_of(report)) as out:
            out.write(signed(raw, signer).encode())
    if page is not None:
        _write_page(page, document)
    for line in lines(document):
        typer.echo(line)
    return 1 if document["holds"] is False else 0


def note_of(report: Path) -> Path:
    """Where the signed note of a report stands."""
    return report.with_name(f"{report.name}.note")


def _simulate(
    settings: Settings,
    connection: KafkaConnection,
    candidate: str | None,
    window: tuple[int | None, int | None],
    by: list[str] | None,
    archive: str | None,
    report: Path,
    *,
    dry_run: bool,
) -> None:
    """A forecast, kept with the candidate's release; the report is the forecast."""
    from ares_stream.audit.forecast import forecast_lines
    from ares_stream.cli.forecast import run
    from ares_stream.errors import SettingsError
    from ares_stream.files import write_document
    from ares_stream.services.forecast import Request

    if candidate is None:
        raise SettingsError("--candidate: --mode simulate needs the release that is to answer")
    slices = settings.monitor.slices if by is None else tuple(by)
    request = Request(since_ms=window[0], until_ms=window[1], by=slices)
    settings = settings.model_copy(update={"kafka": connection})
    forecast = run(settings, candidate, request, archive=archive, dry_run=dry_run)
    if forecast is not None:
        write_document(report, forecast.model_dump(mode="json", exclude_none=True))
        for line in forecast_lines(forecast):
            typer.echo(line)


def _replayed(
    settings: Settings, spec: Any, options: ReplayOptions, work: Path, replay: Any
) -> dict[str, Any]:
    import asyncio

    from rich.progress import (
        BarColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    from ares_stream.cli.terminal import Console

    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
    with Progress(
        *columns, TimeRemainingColumn(), console=console, disable=not console.is_terminal
    ) as bar:
        tasks: dict[str, Any] = {
            "outputs": bar.add_task("reading what was published", total=None),
            "records": bar.add_task("replaying", total=None),
        }

        def expect(selection: Selection) -> None:
            for name, ranges in (("outputs", selection.outputs), ("records", selection.inputs)):
                bar.update(tasks[name], total=sum(item.end - item.start for item in ranges))

        document: dict[str, Any] = asyncio.run(
            replay(
                settings, spec, options, work,
                progress=lambda stage, offsets: bar.advance(tasks[stage], offsets),
                on_ranges=expect,
            )
        )  # fmt: skip
    return document


def _write_page(page: Path, document: dict[str, Any]) -> None:
    from ares_stream.files import written_whole
    from ares_stream.reporting.page import render
    from ares_stream.reporting.replay import replay_page

    made_at = datetime.fromisoformat(document["finished_at"])
    with written_whole(page) as out:
        out.write(render(replay_page(document), made_at).encode())


def _policy(file: Path) -> DetectionPolicy:
    from ares_stream.detection.decide import DetectionPolicy
    from ares_stream.files import read_yaml

    return read_yaml(file, DetectionPolicy)


def signer_of(settings: Settings, file: Path) -> NoteSigner:
    """Who signs reports."""
    from ares_stream.audit.notes import NoteSigner

    return NoteSigner.read(settings.notary.name, file)


def _milliseconds(time: datetime | None) -> int | None:
    from datetime import UTC

    return None if time is None else int(time.replace(tzinfo=UTC).timestamp() * 1000)


def _ranges(texts: list[str] | None) -> Any:
    from ares_stream.audit.replay.selecting import parse_offsets

    return tuple(parse_offsets(text) for text in texts or ())
