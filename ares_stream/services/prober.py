"""The prober: a campaign in; probe Interactions out, exactly once; learns from verdicts."""

from __future__ import annotations

from collections.abc import Sequence

from prometheus_client import CollectorRegistry

from ares_stream.probes.metrics import ProberMetrics
from ares_stream.probes.plan import CampaignFile
from ares_stream.probes.prober import Prober, ProberPolicy
from ares_stream.services import logs
from ares_stream.services.lifecycle import Life
from ares_stream.services.settings import Settings
from ares_stream.streaming.patience import Patience
from ares_stream.streaming.unreadable import UnreadableRecord


class _Metrics(ProberMetrics):
    """Counted, and what an operator should look at said too."""

    _unreadable = 0

    def passed_over(self, record: UnreadableRecord) -> None:
        """A record that names the campaign cannot be read."""
        super().passed_over(record)
        self._unreadable += 1
        if logs.is_told(self._unreadable):
            logs.get("prober").error(
                "record cannot be read", record=str(record), count=self._unreadable
            )


class ProberService:
    """A campaign as a service. One that is done leaves it idle and ready, so that its figures
    can still be scraped."""

    def __init__(self, settings: Settings, campaign: CampaignFile, life: Life) -> None:
        endpoint = campaign.target.endpoint
        section = campaign.attacker
        self._life = life
        self._metrics = _Metrics(
            CollectorRegistry(),
            endpoint.price_per_million if endpoint else (0.0, 0.0),
            section.endpoint.price_per_million if section else (0.0, 0.0),
        )
        self._plan = campaign.plan()
        self._target = campaign.target.open()
        self._attacker = section.open() if section else None
        self._prober = Prober(
            settings.kafka,
            self._plan,
            self._target,
            attacker=self._attacker,
            prefix=settings.topic_prefix,
            policy=ProberPolicy(scorer_groups=settings.scorer_groups),
            observer=self._metrics,
            patience=Patience(settings.patience_seconds, life.clock),
        )
        life.on_stop(self._prober.stop)

    @property
    def registry(self) -> CollectorRegistry:
        """Its metrics."""
        return self._metrics.registry

    def missing(self) -> str | None:
        """See lifecycle.Service."""
        return self._prober.missing()

    def notes(self) -> Sequence[str]:
        """See lifecycle.Service."""
        return ()

    async def run(self) -> None:
        """Probe until the campaign is done, then wait for the end. Raises as Prober.run does."""
        log, prober = self._life.log, self._prober
        try:
            log.info("ready", campaign=self._plan.id, compositions=len(self._plan.space.numbers))
            await prober.run()
            progress = prober.progress
            log.info(
                "campaign done" if prober.campaign.done else "campaign interrupted",
                campaign=self._plan.id,
                queries=progress.queries,
                failures=progress.failures,
                state=progress.state,
            )
            await self._life.stopped()
        finally:
            await self._target.aclose()
            if self._attacker is not None:
                await self._attacker.aclose()
