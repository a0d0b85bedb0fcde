"""`ares scan`: score a file of conversations without Kafka."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

if TYPE_CHECKING:
    from ares_stream.detection.decide import DetectionPolicy
    from ares_stream.detection.ledger import LedgerPolicy
    from ares_stream.files import Lines
    from ares_stream.models.bundles import Bundle
    from ares_stream.records.mapping import Mapping
    from ares_stream.reporting.scan import ScanResult

Provider = Literal["cpu", "cuda"]

_MAX_REPORTED = 20
MAX_ROWS = 40
"""Slices that are printed."""


def command(
    file: Annotated[Path, typer.Argument(help="JSON lines, plain or gzip; - is standard input.")],
    harm: Annotated[
        list[Path],
        typer.Option(metavar="PATH", help="Bundle of a harm judge; repeat for a panel."),
    ],
    reward: Annotated[Path, typer.Option(help="Bundle of the reward model.")],
    verdicts: Annotated[Path, typer.Option(help="Verdicts, JSON lines, without text.")],
    report: Annotated[Path | None, typer.Option(help="HTML page.")] = None,
    json_file: Annotated[
        Path | None, typer.Option("--json", help="Summary as JSON; - is standard output.")
    ] = None,
    map_file: Annotated[
        Path | None,
        typer.Option("--map", help="YAML of JMESPath expressions, or a preset; see `ares map`."),
    ] = None,
    policy_file: Annotated[
        Path | None, typer.Option(help="Detection policy in YAML; the default where left out.")
    ] = None,
    labels_file: Annotated[
        Path | None,
        typer.Option(
            "--labels",
            help="People's labels of a random sample, JSON lines of {interaction_id, harmful}: "
            "takes the judge's error out of the rate.",
        ),
    ] = None,
    cluster: Annotated[
        str | None,
        typer.Option(
            metavar="FIELD",
            help="Attribute whose rows are alike (a goal, a user), or prompt: intervals by "
            "cluster.",
        ),
    ] = None,
    slices: Annotated[
        list[str] | None,
        typer.Option(
            "--slice",
            metavar="FIELD",
            help="Attribute to tell the rates by; repeat for more. Every attribute, up to "
            "eight, by default.",
        ),
    ] = None,
    settings_file: Annotated[
        Path | None,
        typer.Option(
            "--settings",
            help="The monitor's settings: its slices and cluster, where no option names them.",
        ),
    ] = None,
    provider: Annotated[Provider, typer.Option(help="Where the models run.")] = "cpu",
    allow_shared_lineage: Annotated[
        bool, typer.Option(help="Take a judge that shares its base or data with the reward model.")
    ] = False,
) -> None:
    """Score conversations and find coupled failures.

    Exit code 0: every line has a verdict; 1: some lines were refused, the others' verdicts
    are written; 2: the input, a bundle or an option is wrong, nothing is written.
    """
    from ares_stream.files import check_outputs, open_lines
    from ares_stream.models.bundles import load_bundle, refuse_shared_lineage
    from ares_stream.records.mapping import load_mapping
    from ares_stream.reporting.judged import read_labels

    check_outputs(
        {"--verdicts": verdicts, "--report": report, "--json": json_file},
        {
            "FILE": file,
            **{f"--harm {path}": path for path in harm},
            "--reward": reward,
            "--map": map_file,
            "--policy-file": policy_file,
            "--labels": labels_file,
            "--settings": settings_file,
        },
        stdout=("--json",),
    )
    policy = _policy(policy_file)
    mapping = load_mapping(map_file) if map_file else None
    judges = [load_bundle(path, "harm") for path in harm]
    reward_model = load_bundle(reward, "reward")
    if not allow_shared_lineage:
        refuse_shared_lineage(judges, reward_model)
    told, named = _slices(slices, settings_file)
    cluster = cluster or named
    labels: dict[str, bool] | None = None
    if labels_file is not None:
        with open_lines(labels_file) as lines:
            labels = read_labels(lines, str(labels_file))
    with open_lines(file) as lines:
        result = _run(
            file, lines, judges, reward_model, provider, policy, mapping, verdicts, labels,
            cluster, told,
        )  # fmt: skip
    _write_outputs(result, report, json_file)
    _say(result)
    if not result.scored and mapping is None and file.is_file():
        _say_how_to_read(file)
    if result.bad_count:
        raise typer.Exit(1)


def _policy(file: Path | None) -> DetectionPolicy:
    from ares_stream.detection.decide import DetectionPolicy
    from ares_stream.files import read_yaml

    return DetectionPolicy() if file is None else read_yaml(file, DetectionPolicy)


def _slices(names: list[str] | None, settings_file: Path | None) -> tuple[LedgerPolicy, str | None]:
    """What the rates are told by, and the attribute whose rows are alike, as settings name it."""
    from dataclasses import replace

    from ares_stream.detection.ledger import MAX_ATTRIBUTES
    from ares_stream.errors import SettingsError
    from ares_stream.reporting.page import EVERYTHING
    from ares_stream.services.settings import load_settings

    if names is not None and len(names) > MAX_ATTRIBUTES:
        raise SettingsError(f"--slice: {len(names)} attributes; {MAX_ATTRIBUTES} at most")
    found, cluster = EVERYTHING, None
    if settings_file is not None:
        monitor = load_settings(settings_file).monitor
        found = replace(
            found,
            slices=monitor.slices,
            max_values=monitor.max_values,
            max_versions=monitor.max_versions,
        )
        cluster = monitor.cluster
    return (found if names is None else replace(found, slices=tuple(names))), cluster


def _run(
    file: Path,
    lines: Lines,
    judges: list[Bundle],
    reward: Bundle,
    provider: Provider,
    policy: DetectionPolicy,
    mapping: Mapping | None,
    verdicts: Path,
    labels: dict[str, bool] | None,
    cluster: str | None,
    slices: LedgerPolicy,
) -> ScanResult:
    import asyncio
    import time

    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    from ares_stream.cli.terminal import Console
    from ares_stream.errors import SettingsError
    from ares_stream.files import written_whole
    from ares_stream.records.decoding import DecodingLimits
    from ares_stream.records.verdict import Verdict
    from ares_stream.reporting.scan import BadLine, Reference, Source, scan
    from ares_stream.scoring.panel import Panel, ScoringConfig

    survey = lines.survey()
    if survey.lines == 0:
        raise SettingsError(f"{lines.name}: holds no lines")
    stamp = time.time() if str(file) == "-" else file.stat().st_mtime
    source = Source(lines.name, survey.digest, survey.lines, int(stamp * 1000))
    scores = reward.manifest.reference
    reference = Reference(scores.count, scores.version) if scores else None
    reported = 0

    def tell(bad: BadLine) -> None:
        nonlocal reported
        reported += 1
        if reported <= _MAX_REPORTED:
            progress.console.print(f"line {bad.line}: {bad.reason}")
        elif reported == _MAX_REPORTED + 1:
            progress.console.print("more refused lines are in the summary")

    async def work() -> ScanResult:
        panel = Panel.open(judges, reward, ScoringConfig(provider=provider))
        try:
            await panel.warm_up()
            with written_whole(verdicts) as out:

                def write(verdict: Verdict) -> None:
                    out.write(verdict.encode() + b"\n")

                return await scan(
                    lines,
                    source,
                    panel,
                    policy=policy,
                    limits=DecodingLimits(),
                    mapping=mapping,
                    labels=labels,
                    cluster=cluster,
                    slices=slices,
                    reference=reference,
                    on_verdict=write,
                    on_bad=tell,
                    on_progress=lambda line: progress.update(task, completed=line),
                )
        finally:
            await panel.aclose()

    console = Console(stderr=True)
    with Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        console=console,
    ) as progress:
        task = progress.add_task("scoring", total=survey.lines)
        return asyncio.run(work())


def _write_outputs(result: ScanResult, report: Path | None, json_file: Path | None) -> None:
    import json
    from datetime import UTC, datetime

    from ares_stream.files import written_whole
    from ares_stream.reporting.page import render

    if report is not None:
        page = render(result.report(), datetime.now(UTC))
        with written_whole(report) as out:
            out.write(page.encode())
    if json_file is not None:
        content = json.dumps(result.summary(), indent=2, ensure_ascii=False) + "\n"
        if str(json_file) == "-":
            sys.stdout.write(content)
            return
        with written_whole(json_file) as out:
            out.write(content.encode())


def _say_how_to_read(file: Path) -> None:
    """Of a file that holds no Interactions: what would read it."""
    import yaml

    from ares_stream.cli.init import sampled, usual_mapping

    records = sampled(file)
    if not records:
        return
    read, found = usual_mapping(records)
    share = f"{read} of the first {len(records)} lines are read with --map"
    if isinstance(found, str):
        told = f"{share} {found}"
    elif found is not None:
        content = yaml.safe_dump(found, sort_keys=False).rstrip()
        told = f"{share} FILE, of this content:\n{content}"
    elif records[0].startswith(b"["):
        told = "each line is a list; `jq -c '.[]'` writes one object a line"
    else:
        told = "no line is an Interaction; say with --map how to read them (`ares map --help`)"
    typer.echo(told, err=True)


def _say(result: ScanResult) -> None:
    from ares_stream.reporting.charts import percent, span

    judged = result.judged()
    rate = judged.rate
    typer.echo(f"{result.scored:,} scored, {result.bad_count:,} refused", err=True)
    if not result.scored:
        return
    both = rate.contested_harmful
    typer.echo(
        f"coupled-failure rate {percent(rate.raw.value)} ({span(rate.raw)}) with contested answers "
        f"as harmless, {percent(both.value)} ({span(both)}) as harmful",
        err=True,
    )
    if rate.corrected is None:
        typer.echo(f"not corrected for the judge's errors: {rate.reason}", err=True)
    else:
        typer.echo(
            f"corrected by {judged.labels:,} labels: {percent(rate.corrected.value)} "
            f"({span(rate.corrected)})",
            err=True,
        )
    if judged.unmatched:
        typer.echo(f"{judged.unmatched:,} labels belong to no scored line", err=True)
    if result.reference and result.reference.few:
        typer.echo(result.reference.note, err=True)
    from ares_stream.cli.rates import print_rates

    rates = result.rates()
    console = print_rates(rates[:MAX_ROWS], stderr=True)
    if len(rates) > MAX_ROWS:
        console.print(f"{len(rates) - MAX_ROWS:,} more slices are in the summary (--json)")
