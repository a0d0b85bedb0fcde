"""The scorer: interactions in; verdicts, coupled failures and review items out, exactly once.

    listen ─► load bundles ─► reach Kafka ─► take active releases ─► dummy batch ─► process
    /livez                                                           /readyz

Never imports torch.
"""

from __future__ import annotations

import asyncio
import gc
import time
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Final

from prometheus_client import CollectorRegistry

from ares_stream.errors import (
    BreakerOpen,
    BrokerError,
    BundleError,
    DecodeError,
    ScoringError,
    SettingsError,
    root_cause,
)
from ares_stream.files import read_text, renewed_api_key
from ares_stream.models.bundles import Bundle, load_bundle, refuse_shared_lineage
from ares_stream.models.releases import Announced
from ares_stream.models.signing import signed_by
from ares_stream.models.store import fetch_release
from ares_stream.records import topics
from ares_stream.records.release import Release, ReleaseState
from ares_stream.records.topics import topic_name
from ares_stream.scoring.handler import Input, Outputs, ScoringHandler
from ares_stream.scoring.judges import (
    ConstitutionJudge,
    ConstitutionPolicy,
    Judge,
    load_phrases,
)
from ares_stream.scoring.panel import Panel, ScoringConfig
from ares_stream.services.lifecycle import Life
from ares_stream.services.logs import is_told
from ares_stream.services.metrics import ScorerMetrics
from ares_stream.services.release_follower import ReleaseFollower
from ares_stream.services.settings import (
    BreakerSettings,
    ProcessingSettings,
    ScorerSettings,
    Settings,
)
from ares_stream.services.tracing import Tracing, open_tracing
from ares_stream.streaming.admin import count_partitions
from ares_stream.streaming.breaker import BreakerPolicy
from ares_stream.streaming.compacted import follow_compacted, read_latest_as
from ares_stream.streaming.contract import ProcessorPolicy
from ares_stream.streaming.patience import Patience
from ares_stream.streaming.processor import Processor
from ares_stream.streaming.records import InboundRecord, ReadLimits

RETRY_SECONDS: Final = 1.0
END_SECONDS: Final = 25.0
"""After the drain; docs/scorer.md says within thirty seconds."""
COLLECT_AFTER: Final = 20_000
"""Objects made and not freed: more than the windows in hand consist of."""
BREAKER_SECONDS: Final = 120.0
"""With the breaker open the process stays for at least one scrape, so that an alert sees it, and
an orchestrator that restarts it at once does not feed a topic to the dead letters in portions."""


def settle_seconds(settings: Settings) -> float:
    """What a scorer may take after its stop: its drain, then the end of clients that hang."""
    return settings.scorer.processing.drain_seconds + END_SECONDS


class _Watched(ScorerMetrics):
    """What is committed is counted, and has a span where its trace is sampled."""

    def __init__(self, registry: CollectorRegistry, tracing: Tracing | None) -> None:
        super().__init__(registry)
        self._tracing = tracing

    def settled(self, notes: Sequence[object]) -> None:
        """Verdicts were committed."""
        super().settled(notes)
        if self._tracing is not None:
            self._tracing.scored(notes)


class Scorer:
    """One life of the service, from its first bundle to its last commit."""

    def __init__(self, settings: Settings, life: Life) -> None:
        self.log = life.log
        self._life = life
        self._unreadable = 0
        self._patience = Patience(settings.patience_seconds, life.clock)
        self._tracing = open_tracing(settings.tracing, "scorer")
        self.metrics = _Watched(CollectorRegistry(), self._tracing)
        self.metrics.on_inputs(item.topic for item in inputs_of(settings))
        self._settings = settings
        self._bundles: dict[str, Bundle] = {}
        self._follower: ReleaseFollower | None = None
        self._processor: Processor | None = None
        self._missing: str | None = "the models are loading"

    @property
    def registry(self) -> CollectorRegistry:
        """Its metrics."""
        return self.metrics.registry

    def missing(self) -> str | None:
        """See lifecycle.Service."""
        if self._missing is None and self._processor is not None:
            return self._processor.missing()
        return self._missing

    def notes(self) -> Sequence[str]:
        """See lifecycle.Service."""
        processing = () if self._processor is None else self._processor.notes()
        releases = () if self._follower is None else self._follower.notes()
        return (*processing, *releases)

    async def run(self) -> None:
        """Everything between the first request to /livez and the end."""
        panel = await self._life.unless_stopped(self._start())
        if panel is None:
            return
        try:
            await self._process(panel)
        except BreakerOpen as error:
            self._missing = str(error)
            self.log.error("breaker open", error=str(error))
            await self._life.pause(BREAKER_SECONDS)
            raise
        finally:
            await panel.aclose()
            if self._tracing is not None:
                await self._tracing.aclose()

    # Start

    async def _start(self) -> Panel:
        """Models that have scored a dummy, and a Kafka that has every topic."""
        scorer = self._settings.scorer
        harm, reward = await asyncio.to_thread(_configured, self._settings)
        self._missing = f"waiting for Kafka at {self._settings.kafka.bootstrap}"
        await self._reach_kafka()
        if scorer.follow_releases:
            newest = partial(
                _newest,
                active=await self._active_releases(),
                public_key=scorer.public_key,
                cache=scorer.release_cache,
            )
            harm = [await asyncio.to_thread(newest, bundle) for bundle in harm]
            reward = await asyncio.to_thread(newest, reward)
        if not scorer.allow_shared_lineage:
            refuse_shared_lineage(harm, reward)
        self._missing = "the models have not scored a first batch yet"
        config = ScoringConfig(scorer.provider, scorer.threads, scorer.tf32)
        others = _other_judges(scorer, self.metrics)
        panel = await asyncio.to_thread(Panel.open, harm, reward, config, self.metrics, others)
        try:
            await panel.warm_up()
        except ScoringError as error:
            await panel.aclose()
            raise BundleError(f"no use of these bundles: the first score failed: {error}") from None
        self._bundles = {bundle.manifest.name: bundle for bundle in (*harm, reward)}
        return panel

    async def _reach_kafka(self) -> None:
        """Wait for a broker that is not there yet. A missing topic is an error at once."""
        wanted = [item.topic for item in inputs_of(self._settings)]
        wanted += [*outputs_of(self._settings).all, deadletters_of(self._settings)]
        if self._settings.scorer.follow_releases:
            wanted.append(self._releases)
        while True:
            try:
                await count_partitions(self._settings.kafka, wanted)
            except BrokerError as error:
                self._patience.waits(str(error))
                self.log.warning("waiting for Kafka", error=str(error))
            else:
                self._patience.progressed()
                return
            await asyncio.sleep(RETRY_SECONDS)

    @property
    def _releases(self) -> str:
        return topic_name(self._settings.topic_prefix, topics.RELEASES)

    async def _active_releases(self) -> dict[str, Release]:
        latest = await read_latest_as(
            self._settings.kafka,
            self._releases,
            lambda record: (record, Release.decode(record.value or b"")),
            unreadable=lambda record, error: self.on_refused(None, record.offset, error),
        )
        announced, active = Announced(), list[tuple[InboundRecord, Release]]()
        for record, release in latest.values():
            try:
                announced.note(record.key, release)
                announced.check_key(record.key, release)
            except DecodeError as error:
                self.on_refused(None, record.offset, error)
            else:
                active += [(record, release)] if release.state is ReleaseState.ACTIVE else []
        found: dict[str, Release] = {}
        for record, release in active:
            try:
                announced.check(release)
            except DecodeError as error:
                self.on_refused(None, record.offset, error)
            else:
                found[release.model] = release
        return found

    # Processing

    async def _process(self, panel: Panel) -> None:
        """Process; beside it follow releases and show the rate. Ends when processing ends."""
        self._processor = self._make_processor(panel)
        self._life.on_stop(self._processor.stop)
        if self._life.is_stopping:
            return
        self._missing = None
        self.metrics.on_releases(panel.releases)
        self.metrics.on_providers(panel.providers)
        _collect_rarely()
        self.log.info("ready", releases=dict(panel.releases), providers=dict(panel.providers))
        try:
            async with asyncio.TaskGroup() as tasks:
                beside = []
                if self._settings.scorer.follow_releases:
                    self._follower = ReleaseFollower(
                        partial(follow_compacted, self._settings.kafka, self._releases),
                        lambda: panel.releases,
                        partial(self._swap, panel),
                        self,
                    )
                    following = self._follower.run()
                    beside.append(tasks.create_task(following, name="releases"))
                try:
                    await self._processor.run()
                finally:
                    for task in beside:
                        task.cancel()
        except BaseExceptionGroup as group:
            raise root_cause(group) from group

    def _make_processor(self, panel: Panel) -> Processor:
        settings = self._settings
        inputs, outputs = inputs_of(settings), outputs_of(settings)
        return Processor(
            settings.kafka,
            service="scorer",
            group=settings.scorer.group,
            topics=[item.topic for item in inputs],
            handler=ScoringHandler(
                panel,
                inputs=inputs,
                outputs=outputs,
                policy=settings.scorer.detection,
                limits=settings.scorer.limits,
                review_sample=settings.scorer.review_sample,
                review_split=dict(settings.scorer.review_split.items()),
                traced=self._tracing is not None,
            ),
            deadletter_topic=deadletters_of(settings),
            output_topics=outputs.all,
            id_prefix=settings.topic_prefix,
            policy=processor_policy(settings.scorer.processing, settings.scorer.breaker),
            observer=self.metrics,
            group_instance_id=settings.scorer.instance,
            patience=self._patience,
        )

    def on_refused(self, release: Release | None, offset: int, error: Exception) -> None:
        """See FollowerObserver."""
        self.metrics.swap_failures.inc()
        if release is None:
            self._unreadable += 1
            if not is_told(self._unreadable):
                return
        self.log.error("release refused", offset=offset, error=str(error))

    def on_unfollowed(self, error: Exception) -> None:
        """See FollowerObserver."""
        self.log.warning("releases are not followed", error=str(error))

    def on_waiting(self, models: int) -> None:
        """See FollowerObserver."""
        self.metrics.releases_waiting.set(models)

    async def _swap(self, panel: Panel, release: Release) -> None:
        scorer = self._settings.scorer
        began = time.time()
        bundle = await asyncio.to_thread(
            _released, release, scorer.public_key, scorer.release_cache
        )
        bundles = {**self._bundles, bundle.manifest.name: bundle}
        if not scorer.allow_shared_lineage:
            judges = [item for item in bundles.values() if item.manifest.kind == "harm"]
            rewards = [item for item in bundles.values() if item.manifest.kind == "reward"]
            refuse_shared_lineage(judges, rewards[0])
        await panel.swap(bundle)
        self._bundles = bundles
        self.metrics.swaps.labels(release.model).inc()
        if self._tracing is not None:
            self._tracing.swapped(release, began)
        self.metrics.on_releases(panel.releases)
        self.log.info("release swapped", model=release.model, digest=release.digest)


def _collect_rarely() -> None:
    """What is loaded by now stays for good and is not looked through again; records are freed by
    their reference counts, and a window of them is no reason to look for cycles."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(COLLECT_AFTER, 20, 20)


def _other_judges(settings: ScorerSettings, metrics: ScorerMetrics) -> list[Judge]:
    """The judges without a bundle that the settings name."""
    judges: list[Judge] = []
    if settings.phrases is not None:
        judges.append(load_phrases(settings.phrases))
    if settings.constitution is not None:
        asked = settings.constitution
        policy = ConstitutionPolicy(
            url=asked.url,
            model=asked.model,
            constitution=read_text(asked.file),
            api_key=None
            if asked.api_key_file is None
            else renewed_api_key("scorer.constitution.api_key_file", asked.api_key_file),
            doubt=asked.doubt,
            seconds=asked.seconds,
            concurrency=asked.concurrency,
            per_minute=asked.per_minute,
        )
        judges.append(
            ConstitutionJudge(
                policy, on_outcome=lambda outcome: metrics.constitution.labels(outcome).inc()
            )
        )
    return judges


def _configured(settings: Settings) -> tuple[Sequence[Bundle], Bundle]:
    """The bundles that the settings name."""
    scorer = settings.scorer
    if not scorer.harm:
        raise SettingsError(
            "scorer.harm: no judge; name at least one bundle of kind harm "
            "(ARES_SCORER__HARM='[\"/models/judge\"]')"
        )
    if scorer.reward is None:
        raise SettingsError(
            "scorer.reward: no reward model; name a bundle of kind reward "
            "(ARES_SCORER__REWARD=/models/reward)"
        )
    harm = [load_bundle(path, "harm", signed_by(scorer.public_key)) for path in scorer.harm]
    return harm, load_bundle(scorer.reward, "reward", signed_by(scorer.public_key))


def _newest(
    bundle: Bundle, active: Mapping[str, Release], public_key: Path | None, cache: Path
) -> Bundle:
    """The active release of the bundle's name, where there is another one."""
    release = active.get(bundle.manifest.name)
    if release is None or release.kind != bundle.manifest.kind or release.digest == bundle.digest:
        return bundle
    return _released(release, public_key, cache)


def _released(release: Release, public_key: Path | None, cache: Path) -> Bundle:
    if release.kind == "policy":
        raise SettingsError(f"release {release.model} is a policy; a scorer runs judges and RMs")
    path = fetch_release(release, cache)
    bundle = load_bundle(path, release.kind, signed_by(public_key))
    if bundle.manifest.name != release.model:
        raise BundleError(
            f"release {release.model}: {release.uri} is a bundle named {bundle.manifest.name}"
        )
    return bundle


def inputs_of(settings: Settings) -> list[Input]:
    """The topics that are read, with lane and mapping."""
    if settings.scorer.inputs:
        return [Input(item.topic, item.lane, item.map) for item in settings.scorer.inputs]
    prefix = settings.topic_prefix
    return [
        Input(topic_name(prefix, topics.PRODUCTION), "production"),
        Input(topic_name(prefix, topics.PROBE), "probe"),
        Input(topic_name(prefix, topics.ANCHOR), "anchor"),
    ]


def outputs_of(settings: Settings) -> Outputs:
    """The topics that are written."""
    prefix = settings.topic_prefix
    return Outputs(
        verdicts=topic_name(prefix, topics.VERDICTS),
        repair=topic_name(prefix, topics.REPAIR),
        review=topic_name(prefix, topics.REVIEW),
    )


def deadletters_of(settings: Settings) -> str:
    """Where what is refused goes."""
    return topic_name(settings.topic_prefix, topics.DEADLETTERS)


def processor_policy(
    settings: ProcessingSettings, breaker: BreakerSettings | None = None
) -> ProcessorPolicy:
    """The processor's policy from the settings."""
    breaker = breaker or BreakerSettings()
    return ProcessorPolicy(
        window_records=settings.window_records,
        inflight_records=settings.inflight_records,
        inflight_bytes=settings.inflight_mebibytes << 20,
        commit_records=settings.commit_records,
        commit_seconds=settings.commit_milliseconds / 1000,
        drain_seconds=settings.drain_seconds,
        session_seconds=settings.session_seconds,
        heartbeat_seconds=settings.session_seconds / 9,
        metadata_seconds=settings.metadata_seconds,
        stall_seconds=settings.stall_seconds,
        offset_reset=settings.offset_reset,
        read=ReadLimits(
            record_bytes=settings.record_mebibytes << 20,
            batch_bytes=settings.batch_mebibytes << 20,
        ),
        breaker=BreakerPolicy(
            window=breaker.window,
            share=breaker.share,
            consecutive=breaker.consecutive,
            accept=breaker.accept_dead_letters,
        ),
    )
