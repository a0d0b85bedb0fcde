"""The prober: a campaign in; probe Interactions out, exactly once; learns from verdicts."""

from __future__ import annotations

import asyncio
import signal

from prometheus_client import CollectorRegistry

from ares_stream.probes.metrics import ProberMetrics
from ares_stream.probes.plan import CampaignFile
from ares_stream.probes.prober import Prober, ProberPolicy
from ares_stream.services import logs
from ares_stream.services.health import health_app, serve_health
from ares_stream.services.settings import Settings


async def run_prober(settings: Settings, campaign: CampaignFile) -> None:
    """Probe until SIGTERM or SIGINT. A campaign that is done leaves the service idle and ready,
    so that its figures can still be scraped. Raises the AresError that ended it."""
    log = logs.get("prober")
    endpoint = campaign.target.endpoint
    section = campaign.attacker
    metrics = ProberMetrics(
        CollectorRegistry(),
        endpoint.price_per_million if endpoint else (0.0, 0.0),
        section.endpoint.price_per_million if section else (0.0, 0.0),
    )
    plan = campaign.plan()
    target = campaign.target.open()
    attacker = section.open() if section else None
    prober = Prober(
        settings.kafka,
        plan,
        target,
        attacker=attacker,
        prefix=settings.topic_prefix,
        policy=ProberPolicy(scorer_group=settings.scorer.group),
        observer=metrics,
    )
    stopping = asyncio.Event()

    def stop() -> None:
        stopping.set()
        prober.stop()

    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop)
    try:
        app = health_app(metrics.registry, lambda: "stopping" if stopping.is_set() else None)
        async with serve_health(app, settings.http.host, settings.http.port) as port:
            log.info("ready", port=port, campaign=plan.id, compositions=len(plan.space.numbers))
            await prober.run()
            progress = prober.progress
            log.info(
                "campaign done" if prober.campaign.done else "campaign interrupted",
                campaign=plan.id,
                queries=progress.queries,
                failures=progress.failures,
                state=progress.state,
            )
            await stopping.wait()
    finally:
        await target.aclose()
        if attacker is not None:
            await attacker.aclose()
        log.info("stopped")
