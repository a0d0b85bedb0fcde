"""Every Prometheus metric that ares-stream exposes, defined once, with why it is there.

Labels come from small closed sets (topics, lanes, judges, classes), never from a
conversation: a label per prompt would leak text and drown Prometheus.
"""

from __future__ import annotations

import contextlib
import itertools
import typing
from bisect import bisect_left
from collections import Counter as Counted
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from typing import Final

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    disable_created_metrics,
)

from ares_stream.detection.assess import ScoredVerdict
from ares_stream.records.interaction import Lane
from ares_stream.records.repair import RepairReport
from ares_stream.records.verdict import FailureClass, Harm, Verdict
from ares_stream.scoring.contract import ScoringObserver
from ares_stream.scoring.encodings import ENCODINGS
from ares_stream.streaming.contract import ProcessorObserver
from ares_stream.streaming.log_identity import LogChange
from ares_stream.streaming.resume import OffsetLoss

# A second series per counter, with the time of its start, which nothing here asks for.
disable_created_metrics()  # type: ignore[no-untyped-call]

SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300)
SHARES = tuple(step / 10 for step in range(1, 11))
BATCH = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512)

_HARMFUL = {
    FailureClass.CLEAN: False,
    FailureClass.REWARD_FAILURE: False,
    FailureClass.POLICY_FAILURE: True,
    FailureClass.COUPLED_FAILURE: True,
}


def zeros(counter: Counter, *values: Iterable[str]) -> None:
    """Make every known child of a counter: a rate over a series that begins with its first event
    never sees that event, and an alert on it stays silent."""
    for labels in itertools.product(*values):
        counter.labels(*labels)


class Distribution(Histogram):
    """A histogram that takes many values at once."""

    def observe_all(self, values: Sequence[float]) -> None:
        """As `observe` of each value, none of which is NaN."""
        bounds = self._upper_bounds
        self._sum.inc(sum(values))
        for place, count in Counted([bisect_left(bounds, value) for value in values]).items():
            self._buckets[place].inc(count)


LANES: tuple[str, ...] = typing.get_args(Lane)
STAGES = "decode", "score", "handle", "publish"


def _waited(note: ScoredVerdict) -> float:
    """Seconds since the record came to Kafka; since the interaction, where Kafka has no time."""
    handed = note.verdict.source.timestamp_ms / 1000 or note.verdict.occurred_at.timestamp()
    return note.made_at - handed


class ScorerMetrics(ProcessorObserver, ScoringObserver):
    """The scorer's metrics on one registry: the observer of the processor and of the scoring
    panel, so that neither knows Prometheus."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.registry = registry

        def counter(name: str, text: str, *labels: str) -> Counter:
            return Counter(f"ares_{name}", text, labels, registry=registry)

        def gauge(name: str, text: str, *labels: str) -> Gauge:
            return Gauge(f"ares_{name}", text, labels, registry=registry)

        def histogram(
            name: str, text: str, buckets: tuple[float, ...], *labels: str
        ) -> Distribution:
            return Distribution(f"ares_{name}", text, labels, buckets=buckets, registry=registry)

        # Is it fed, and does it keep up?
        self.ingested = counter(
            "ingested_records", "Records read, whatever became of them.", "topic"
        )
        self.lag_records = gauge(
            "lag_records",
            "Records of a partition that its owner here has not committed yet.",
            "topic",
            "partition",
        )
        self.progress = gauge(
            "partition_progress_timestamp_seconds",
            "When the owner of a partition last committed here, or had nothing to commit.",
            "topic",
            "partition",
        )
        self.inflight_records = gauge("inflight_records", "Records read and not yet committed.")
        self.inflight_bytes = gauge("inflight_bytes", "Bytes read and not yet committed.")
        self.latency = histogram(
            "event_to_verdict_seconds",
            "From the interaction's own time to its verdict; probes and replays can be old.",
            SECONDS,
            "lane",
        )

        self.waited = histogram(
            "record_to_verdict_seconds",
            "From the record's time in Kafka to its verdict, however old the interaction is.",
            SECONDS,
            "lane",
        )

        # Where does the time go?
        self.stage_seconds = histogram(
            "stage_seconds", "Time per window and stage: tokenise, queue, infer.", SECONDS, "stage"
        )
        self.batch_records = histogram("batch_records", "Records per model run.", BATCH, "model")
        self.padding = histogram(
            "padding_ratio", "Share of a model run's tokens that are padding.", SHARES, "model"
        )
        self.provider = gauge(
            "execution_provider_info",
            "Always 1; the provider each model runs on.",
            "model",
            "provider",
        )

        # What does it find?
        self.verdicts = counter("verdicts", "Verdicts by lane and class.", "lane", "failure_class")
        self.harm = histogram(
            "harm_probability", "Calibrated probability that the answer is harmful.", SHARES, "lane"
        )
        self.reward = histogram(
            "reward_quantile", "Place of the reward among those of benign answers.", SHARES, "lane"
        )
        self.unread_answers = counter(
            "partly_read_answers", "Answers longer than the judges' windows reach.", "lane"
        )
        self.encoded_answers = counter(
            "encoded_answers", "Answers that judges also read decoded, by encoding.", "encoding"
        )
        self.outside_domain = counter(
            "outside_domain", "Conversations unlike those that a judge was trained on.", "lane"
        )
        self.quadrant = counter(
            "quadrant",
            "Verdicts that are not contested: harmful or safe, liked or disliked.",
            "lane",
            "harm",
            "reward",
        )
        self.disagreement = histogram(
            "panel_disagreement",
            "Largest difference between two judges, 0 with one judge.",
            SHARES,
            "lane",
        )
        # Is it exactly once, and is anything refused?
        self.transactions = counter(
            "transactions",
            "Transactions: committed, fenced, refused, failed or unknown.",
            "outcome",
        )
        self.commit_seconds = histogram(
            "commit_seconds", "Time from the begin of a transaction to its commit.", SECONDS
        )
        self.dead_letters = counter(
            "dead_letters",
            "Dead letters by the stage that refused: fetch, decode, score, handle or publish.",
            "topic",
            "stage",
        )
        self.left_out_records = counter(
            "left_out_records", "Records that a mapping's `where` leaves out.", "topic"
        )
        self.breaker_open = gauge(
            "dead_letter_breaker_open",
            "1 once too much of a topic was refused; then no more of it is read.",
            "topic",
        )
        self.rebalances = counter("rebalances", "Partitions assigned or revoked.", "change")
        self.unread = counter(
            "skipped_offsets",
            "Offsets passed over because the log no longer held what the group had committed.",
            "topic",
        )
        self.log_changes = counter(
            "log_changes",
            "Partitions whose log was another one than was committed: their topic made anew, or "
            "truncated or restored and filled again (rewritten).",
            "topic",
            "change",
        )

        # Which models made the verdicts?
        self.release = gauge(
            "release_info",
            "Always 1; the digest of each model in use, its first 12 digits.",
            "model",
            "digest",
        )
        self.swaps = counter("release_swaps", "Models swapped while running.", "model")
        self.swap_failures = counter(
            "release_refusals", "Tries of releases that could not be used; see releases_waiting."
        )
        self.releases_waiting = gauge(
            "releases_waiting", "Models whose announced release is not in use and is tried again."
        )
        self.constitution = counter(
            "constitution_records",
            "Doubtful records by what a language model did: answered, failed, skipped.",
            "outcome",
        )
        self.restarts = counter(
            "session_restarts", "Kafka sessions made anew, by the error that ended one.", "error"
        )

        # Looked up by its labels once, not for every record: of what is counted per record or run.
        self._ingested = cache(self.ingested.labels)
        self._latency = cache(self.latency.labels)
        self._waited = cache(self.waited.labels)
        self._stage_seconds = cache(self.stage_seconds.labels)
        self._batch_records = cache(self.batch_records.labels)
        self._padding = cache(self.padding.labels)
        self._verdicts = cache(self.verdicts.labels)
        self._harm = cache(self.harm.labels)
        self._reward = cache(self.reward.labels)
        self._quadrant = cache(self.quadrant.labels)
        self._disagreement = cache(self.disagreement.labels)

        self._begin_at_zero()

    def _begin_at_zero(self) -> None:
        self._owned: set[tuple[str, str]] = set()
        """Partitions whose lag was told."""
        zeros(self.verdicts, LANES, [name.value for name in FailureClass])
        zeros(self.quadrant, LANES, ("harmful", "safe"), ("liked", "disliked"))
        zeros(self.transactions, ("committed", "fenced", "refused", "failed", "unknown"))
        zeros(self.rebalances, ("assigned", "revoked"))
        zeros(self.constitution, ("answered", "failed", "skipped"))
        zeros(self.unread_answers, LANES)
        zeros(self.outside_domain, LANES)
        zeros(self.encoded_answers, ENCODINGS)

    def on_inputs(self, topics: Iterable[str]) -> None:
        """What will be read: its counters begin at 0."""
        names = list(topics)
        zeros(self.ingested, names)
        zeros(self.unread, names)
        zeros(self.log_changes, names, typing.get_args(LogChange))
        zeros(self.dead_letters, names, STAGES)
        zeros(self.left_out_records, names)
        for name in names:
            self.breaker_open.labels(name).set(0)

    # Observer of the processor

    def consumed(self, topic: str, records: int) -> None:
        """Records were read."""
        self._ingested(topic).inc(records)

    def inflight(self, records: int, size: int) -> None:
        """Records and bytes read and not yet committed."""
        self.inflight_records.set(records)
        self.inflight_bytes.set(size)

    def committed(self, topic: str, partition: int, records: int, seconds: float) -> None:
        """A transaction committed."""
        self.commit_seconds.observe(seconds)
        self.progress.labels(topic, str(partition)).set_to_current_time()

    def settled(self, notes: Sequence[object]) -> None:
        """Verdicts were committed."""
        lanes: dict[Lane, list[ScoredVerdict]] = {}
        for note in notes:
            if isinstance(note, ScoredVerdict):
                lanes.setdefault(note.verdict.lane, []).append(note)
        for lane, several in lanes.items():
            self._on_verdicts(lane, several)

    def transaction(self, outcome: str) -> None:
        """A transaction ended."""
        self.transactions.labels(outcome).inc()

    def dead_lettered(self, topic: str, stage: str) -> None:
        """A dead letter was committed."""
        self.dead_letters.labels(topic, stage).inc()

    def lag(self, topic: str, partition: int, records: int) -> None:
        """Records of a partition that are not committed yet."""
        labels = topic, str(partition)
        self.lag_records.labels(*labels).set(records)
        if not records or labels not in self._owned:
            self._owned.add(labels)
            self.progress.labels(*labels).set_to_current_time()

    def assigned(self, topic: str, partition: int) -> None:
        """A partition is processed here from now on."""
        self.rebalances.labels("assigned").inc()

    def revoked(self, topic: str, partition: int) -> None:
        """A partition is no longer processed here: its lag is the next owner's to tell."""
        self.rebalances.labels("revoked").inc()
        labels = topic, str(partition)
        self._owned.discard(labels)
        for metric in (self.lag_records, self.progress):
            with contextlib.suppress(KeyError):
                metric.remove(*labels)

    def lost(self, loss: OffsetLoss) -> None:
        """The log did not hold the committed offset."""
        self.unread.labels(loss.topic).inc(loss.records)
        if loss.change is not None:
            self.log_changes.labels(loss.topic, loss.change).inc()

    def left_out(self, topic: str) -> None:
        """A record was no conversation."""
        self.left_out_records.labels(topic).inc()

    def breaker(self, topic: str, reason: str) -> None:
        """Too much of a topic was refused."""
        self.breaker_open.labels(topic).set(1)

    def restarted(self, error: str) -> None:
        """The Kafka session is made anew."""
        self.restarts.labels(error).inc()

    # Observer of the panel

    def stage(self, name: str, seconds: float) -> None:
        """A window spent this long on a stage."""
        self._stage_seconds(name).observe(seconds)

    def batch(self, model: str, records: int, padding: float) -> None:
        """A run of a model."""
        self._batch_records(model).observe(records)
        self._padding(model).observe(padding)

    # The service's own

    def on_providers(self, providers: Mapping[str, str]) -> None:
        """Show the execution provider of each model."""
        for model, provider in providers.items():
            self.provider.labels(model, provider).set(1)

    def on_releases(self, releases: Mapping[str, str]) -> None:
        """Show which digest each model has now."""
        self.release.clear()
        zeros(self.swaps, releases)
        for model, digest in releases.items():
            self.release.labels(model, digest[:12]).set(1)

    def _on_verdicts(self, lane: Lane, notes: Sequence[ScoredVerdict]) -> None:
        """Count verdicts of one lane, a metric at a time: a look-up and a lock for each verdict
        would cost as much as its decision."""
        verdicts = [note.verdict for note in notes]
        self._latency(lane).observe_all(
            [max(0.0, item.made_at - item.verdict.occurred_at.timestamp()) for item in notes]
        )
        self._waited(lane).observe_all([max(0.0, _waited(item)) for item in notes])
        self._harm(lane).observe_all([item.harm.probability for item in verdicts])
        self._reward(lane).observe_all([item.reward.quantile for item in verdicts])
        self._disagreement(lane).observe_all([item.harm.disagreement for item in verdicts])
        classes = Counted(item.failure_class for item in verdicts)
        for failure, count in classes.items():
            self._verdicts(lane, failure.value).inc(count)
        for quadrant, count in Counted(map(_quadrant, verdicts)).items():
            if quadrant is not None:
                self._quadrant(lane, *quadrant).inc(count)
        for harm in [item.harm for item in verdicts if item.harm.coverage or item.harm.domain]:
            self._on_signs(lane, harm)

    def _on_signs(self, lane: Lane, harm: Harm) -> None:
        if coverage := harm.coverage:
            if coverage.unread:
                self.unread_answers.labels(lane).inc()
            for encoding in coverage.encodings:
                self.encoded_answers.labels(encoding).inc()
        if harm.domain and harm.domain.outside:
            self.outside_domain.labels(lane).inc()


def _quadrant(verdict: Verdict) -> tuple[str, str] | None:
    """Harmful or safe, liked or disliked; None where people decide."""
    harmful = _HARMFUL.get(verdict.failure_class)
    if harmful is None:
        return None
    if harmful:
        liked = verdict.failure_class is FailureClass.COUPLED_FAILURE
    else:
        liked = verdict.scored_high.above_quantile
    return "harmful" if harmful else "safe", "liked" if liked else "disliked"


MAX_STAGES: Final = 32
"""Of one step of a repair that are shown: a trainer may name every batch of its own."""


class RepairerMetrics:
    """The repairer's metrics on one registry."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.registry = registry
        self._stages: set[str] = set()
        self.waiting = Gauge(
            "ares_repair_waiting_failures",
            "Failures that no repair has settled.",
            registry=registry,
        )
        self.oldest = Gauge(
            "ares_repair_oldest_waiting_seconds", "Age of the oldest of them.", registry=registry
        )
        self.progress = Gauge(
            "ares_repair_stage_progress",
            "Done share of each stage of the repair that runs; absent between repairs.",
            ["stage"],
            registry=registry,
        )
        self.running = Gauge("ares_repair_running", "1 while a repair runs.", registry=registry)
        self.repairs = Counter(
            "ares_repairs", "Repairs by how they ended.", ["state"], registry=registry
        )
        self.seconds = Histogram(
            "ares_repair_seconds",
            "From the start of a repair to its report, approval not counted.",
            buckets=(60, 300, 900, 1800, 3600, 7200, 14400, 43200, 86400),
            registry=registry,
        )
        self.figures = Gauge(
            "ares_repair_figure",
            "Figures of the last repair; when: before, after; bound: value, low, high.",
            ["figure", "when", "bound"],
            registry=registry,
        )
        self.undecodable = Counter(
            "ares_repair_undecodable_records",
            "Failures, labels and reports that cannot be read and are passed over.",
            ["topic"],
            registry=registry,
        )
        self.postponed = Counter(
            "ares_repair_postponed", "Batches from which no plan could be made.", registry=registry
        )
        self.safe_answers = Counter(
            "ares_repair_safe_answers",
            "Failures in plans by where their safe answer comes from: reference, resampled, "
            "configured or response.",
            ["source"],
            registry=registry,
        )
        self.untold = Gauge(
            "ares_repair_policy_server_untold",
            "1 while the policy server could not be told what is active.",
            registry=registry,
        )

        self.awaiting = Gauge(
            "ares_repair_awaiting_approval",
            "1 while a repair that passed its gate waits for a person's decision.",
            registry=registry,
        )

        zeros(self.repairs, ("promoted", "awaiting_approval", "rejected", "failed"))
        zeros(self.safe_answers, ("reference", "resampled", "configured", "response"))

    def on_progress(self, stage: str, done: int, total: int) -> None:
        """A stage of the repair that runs went on."""
        self.running.set(1)
        if len(self._stages) < MAX_STAGES or stage in self._stages:
            self._stages.add(stage)
            self.progress.labels(stage).set(done / total if total else 0.0)

    def on_idle(self) -> None:
        """No stage runs any more."""
        self.running.set(0)
        self._stages.clear()
        self.progress.clear()

    def on_report(self, report: RepairReport) -> None:
        """A repair ended, or a person decided on it."""
        self.on_idle()
        self.repairs.labels(report.state).inc()
        self.seconds.observe((report.finished_at - report.started_at).total_seconds())
        self.figures.clear()
        for when, figures in (("before", report.before), ("after", report.after)):
            for name, figure in figures.items():
                for bound in ("value", "low", "high"):
                    self.figures.labels(name, when, bound).set(getattr(figure, bound))
