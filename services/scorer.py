"""The scorer: interactions in; verdicts, coupled failures and review items out, exactly once.

Never imports torch.
"""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from prometheus_client import CollectorRegistry

from ares_stream import logs, topics
from ares_stream.bundles import Bundle, load_bundle, refuse_shared_lineage
from ares_stream.errors import AresError, SettingsError
from ares_stream.events import Lane, Release, ReleaseState, Verdict
from ares_stream.health import health_app, serve_health
from ares_stream.metrics import ScorerMetrics
from ares_stream.scoring.handler import Input, Outputs, ScoringHandler
from ares_stream.scoring.panel import Panel, ScoringConfig
from ares_stream.settings import ProcessingSettings, Settings
from ares_stream.statistics import Tally
from ares_stream.streaming.contract import ProcessorPolicy
from ares_stream.streaming.processor import Processor
from ares_stream.streaming.reader import follow_compacted, read_latest
from ares_stream.topics import topic_name

LANES: Final[tuple[Lane, ...]] = ("production", "probe")
RATE_SECONDS: Final = 5.0
"""How often the interval is computed: often enough for a scrape, rarely enough to be free."""


async def run_scorer(settings: Settings) -> None:
    """Score until SIGTERM or SIGINT, then drain. Raises the AresError that ended it."""
    log = logs.get("scorer")
    metrics = ScorerMetrics(CollectorRegistry())
    harm, reward = await _bundles(settings)
    panel = Panel.open(
        harm,
        reward,
        ScoringConfig(provider=settings.scorer.provider, threads=settings.scorer.threads),
        metrics,
    )
    tally = Tally(settings.scorer.detection)

    def on_verdict(verdict: Verdict, now: float) -> None:
        tally.add(verdict)
        metrics.on_verdict(verdict, now)

    inputs = _inputs(settings)
    processor = Processor(
        settings.kafka,
        service="scorer",
        group=settings.scorer.group,
        topics=[item.topic for item in inputs],
        handler=ScoringHandler(
            panel,
            inputs=inputs,
            outputs=_outputs(settings),
            policy=settings.scorer.detection,
            limits=settings.scorer.limits,
            review_sample=settings.scorer.review_sample,
            on_verdict=on_verdict,
        ),
        deadletter_topic=topic_name(settings.topic_prefix, topics.DEADLETTERS),
        id_prefix=settings.topic_prefix,
        policy=processor_policy(settings.scorer.processing),
        observer=metrics,
        group_instance_id=settings.scorer.instance,
    )
    warm = False
    stopping = False

    def missing() -> str | None:
        if not warm:
            return "the models have not scored a first batch yet"
        return "draining" if stopping else None

    def stop() -> None:
        nonlocal stopping
        stopping = True
        log.info("draining")
        processor.stop()

    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop)
    try:
        app = health_app(metrics.registry, missing)
        async with serve_health(app, settings.http.host, settings.http.port) as port:
            await panel.warm_up()
            warm = True
            metrics.on_releases(panel.releases)
            metrics.on_providers(panel.providers)
            log.info("ready", port=port, releases=dict(panel.releases), **_providers(panel))
            await _process(settings, processor, panel, metrics, tally)
    finally:
        await panel.aclose()
        log.info("stopped")


async def _process(
    settings: Settings, processor: Processor, panel: Panel, metrics: ScorerMetrics, tally: Tally
) -> None:
    """Process; beside it follow releases and show the rate. Ends when processing ends."""
    try:
        async with asyncio.TaskGroup() as tasks:
            beside = [tasks.create_task(_show_rates(metrics, tally), name="rates")]
            if settings.scorer.follow_releases:
                beside.append(
                    tasks.create_task(_follow_releases(settings, panel, metrics), name="releases")
                )
            try:
                await processor.run()
            finally:
                for task in beside:
                    task.cancel()
    except BaseExceptionGroup as group:
        raise _first(group) from group


def _first(group: BaseExceptionGroup[Any]) -> BaseException:
    error: BaseException = group
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error


async def _show_rates(metrics: ScorerMetrics, tally: Tally) -> None:
    while True:
        await asyncio.sleep(RATE_SECONDS)
        for lane in LANES:
            metrics.on_rate(lane, tally.rate(lane))


async def _follow_releases(settings: Settings, panel: Panel, metrics: ScorerMetrics) -> None:
    """Swap in what the releases topic announces. A release that cannot be used is logged and
    counted, and the scorer goes on with what it has: a bad release must not stop the stream."""
    log = logs.get("scorer")
    topic = topic_name(settings.topic_prefix, topics.RELEASES)
    async for record in follow_compacted(settings.kafka, topic):
        if record.value is None:
            continue
        try:
            release = Release.decode(record.value)
            if not _concerns(release, panel.releases):
                continue
            await panel.swap(_released(release))
        except AresError as error:
            metrics.swap_failures.inc()
            log.error("release refused", offset=record.offset, error=str(error))
            continue
        metrics.swaps.labels(release.model).inc()
        metrics.on_releases(panel.releases)
        log.info("release swapped", model=release.model, digest=release.digest)


def _concerns(release: Release, in_use: Mapping[str, str]) -> bool:
    return (
        release.state is ReleaseState.ACTIVE
        and release.kind != "policy"
        and release.model in in_use
        and in_use[release.model] != release.digest
    )


def _released(release: Release) -> Bundle:
    if release.kind == "policy":
        raise SettingsError(f"release {release.model} is a policy; a scorer runs judges and RMs")
    bundle = load_bundle(Path(release.uri.removeprefix("file://")), release.kind)
    if bundle.digest != release.digest:
        raise SettingsError(
            f"release {release.model}: {release.uri} has digest {bundle.digest[:12]}, "
            f"the release names {release.digest[:12]}"
        )
    return bundle


async def _bundles(settings: Settings) -> tuple[Sequence[Bundle], Bundle]:
    """The configured bundles, or the active releases of the same names where there are any."""
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
    harm = [load_bundle(path, "harm") for path in scorer.harm]
    reward = load_bundle(scorer.reward, "reward")
    if scorer.follow_releases:
        latest = await read_latest(
            settings.kafka, topic_name(settings.topic_prefix, topics.RELEASES)
        )
        active = {
            release.model: release
            for record in latest.values()
            if record.value is not None
            and (release := Release.decode(record.value)).state is ReleaseState.ACTIVE
        }
        harm = [_newest(bundle, active) for bundle in harm]
        reward = _newest(reward, active)
    if not scorer.allow_shared_lineage:
        refuse_shared_lineage(harm, reward)
    return harm, reward


def _newest(bundle: Bundle, active: Mapping[str, Release]) -> Bundle:
    release = active.get(bundle.manifest.name)
    if release is None or release.kind != bundle.manifest.kind or release.digest == bundle.digest:
        return bundle
    return _released(release)


def _inputs(settings: Settings) -> list[Input]:
    if settings.scorer.inputs:
        return [Input(item.topic, item.lane, item.map) for item in settings.scorer.inputs]
    prefix = settings.topic_prefix
    return [
        Input(topic_name(prefix, topics.PRODUCTION), "production"),
        Input(topic_name(prefix, topics.PROBE), "probe"),
    ]


def _outputs(settings: Settings) -> Outputs:
    prefix = settings.topic_prefix
    return Outputs(
        verdicts=topic_name(prefix, topics.VERDICTS),
        repair=topic_name(prefix, topics.REPAIR),
        review=topic_name(prefix, topics.REVIEW),
    )


def processor_policy(settings: ProcessingSettings) -> ProcessorPolicy:
    """The processor's policy from the settings."""
    return ProcessorPolicy(
        window_records=settings.window_records,
        inflight_records=settings.inflight_records,
        inflight_bytes=settings.inflight_mebibytes << 20,
        commit_records=settings.commit_records,
        commit_seconds=settings.commit_milliseconds / 1000,
        drain_seconds=settings.drain_seconds,
    )


def _providers(panel: Panel) -> dict[str, str]:
    return {f"provider_{name}": provider for name, provider in panel.providers.items()}
