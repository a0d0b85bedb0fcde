"""`ares loop`: rounds of probes against a running system, with its repairs between them."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from ares_stream.services.rounds import Round


def command(
    campaign: Annotated[Path, typer.Argument(help="The campaign of each round, a YAML file.")],
    rounds: Annotated[int, typer.Option(min=1, max=100, help="Rounds of probes.")] = 2,
    settings_file: Annotated[
        Path | None, typer.Option("--settings", help="YAML file; the environment wins over it.")
    ] = None,
    repair_hours: Annotated[
        float, typer.Option(min=0.001, help="How long a repair is waited for after a round.")
    ] = 6.0,
    figures: Annotated[
        Path | None, typer.Option("--json", help="Also write the rounds to this file.")
    ] = None,
) -> None:
    """Probe, wait for the repair, probe again. `ares scorer` and `ares repairer` must be running.

    Each round is a campaign of its own, named after the file's name and the round. Exits 0 when
    every round ended, 1 when no repair was decided in time, 2 for a wrong campaign, settings
    or topics, 3 when Kafka or the policy stays unreachable.
    """
    from ares_stream.files import check_outputs, written_whole
    from ares_stream.probes.plan import CampaignPlan, load_campaign
    from ares_stream.probes.prober import ProberPolicy
    from ares_stream.probes.targets import Target
    from ares_stream.records import topics
    from ares_stream.records.repair import RepairReport
    from ares_stream.records.topics import topic_name
    from ares_stream.repair.intake import read_reports
    from ares_stream.services.rounds import next_report, run_rounds
    from ares_stream.services.settings import load_settings
    from ares_stream.streaming.unreadable import PassedOver, UnreadableRecord

    check_outputs({"--json": figures}, {"CAMPAIGN": campaign, "--settings": settings_file})
    settings = load_settings(settings_file)
    file = load_campaign(campaign)

    def tell(record: UnreadableRecord) -> None:
        typer.echo(f"passed over: {record}", err=True)

    passed_over = PassedOver(tell)

    async def work() -> list[Round]:
        topic = topic_name(settings.topic_prefix, topics.REPAIRS)
        known = set(await read_reports(settings.kafka, topic, passed_over))

        async def open_round(number: int) -> tuple[CampaignPlan, Target, Target | None]:
            plan = file.model_copy(update={"name": f"{file.name}-{number}"}).plan()
            attacker = file.attacker.open() if file.attacker else None
            return plan, file.target.open(), attacker

        async def repair(number: int) -> RepairReport:
            typer.echo(f"round {number}: waiting for the repair", err=True)
            report = await next_report(
                settings.kafka, settings.topic_prefix, known, repair_hours * 3600
            )
            known.add(report.plan_id)
            typer.echo(f"repair {report.plan_id[:12]}: {report.state}", err=True)
            return report

        return await run_rounds(
            settings.kafka,
            settings.topic_prefix,
            rounds,
            open_round=open_round,
            repair=repair,
            policy=ProberPolicy(scorer_groups=settings.scorer_groups, patience_seconds=300.0),
            on_round=_tell,
        )

    found = asyncio.run(work())
    document = json.dumps(
        {"schema": "ares.loop/1", "rounds": [item.as_json() for item in found]}, indent=2
    )
    typer.echo(document)
    if figures is not None:
        with written_whole(figures) as out:
            out.write(document.encode() + b"\n")


def _tell(found: Round) -> None:
    rate = found.rate
    typer.echo(
        f"round {found.number}: policy {found.policy}: {found.failures} confirmed failures in "
        f"{found.probes} probes ({rate.low:.1%} to {rate.high:.1%}), {found.unique} unlike",
        err=True,
    )
