"""The prober's Prometheus metrics. Labels are closed sets: reasons, axes and component ids."""

from __future__ import annotations

import itertools
from collections import Counter as Counts
from typing import Final, get_args

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from ares_stream.endpoints.client import Unanswerable
from ares_stream.errors import TargetError
from ares_stream.probes.attacker import Fault, Kind
from ares_stream.probes.memory import Calibration, Progress
from ares_stream.probes.prober import ProberObserver
from ares_stream.probes.targets import Answer
from ares_stream.streaming.unreadable import UnreadableRecord

PAUSES: Final = ("target", "lag", "verdicts", "budget")
SECONDS: Final = (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120)


class ProberMetrics(ProberObserver):
    """An observer that counts. `prices`: of a million prompt and completion tokens, of the target
    and of the attacker."""

    def __init__(
        self,
        registry: CollectorRegistry,
        prices: tuple[float, float] = (0.0, 0.0),
        attacker_prices: tuple[float, float] = (0.0, 0.0),
    ) -> None:
        self.registry = registry
        self._prices = prices
        self._attacker_prices = attacker_prices

        def counter(name: str, text: str, *labels: str) -> Counter:
            return Counter(f"ares_prober_{name}", text, labels, registry=registry)

        def gauge(name: str, text: str, *labels: str) -> Gauge:
            return Gauge(f"ares_prober_{name}", text, labels, registry=registry)

        # What does it find? From the topics, so a restart does not set it back.
        self.queries = gauge("queries", "Queries settled, confirmations included.")
        self.budget = gauge("budget", "Queries that the campaign may spend.")
        self.failures = gauge("failures", "Confirmed coupled failures.")
        self.unique = gauge("unique_failures", "Clusters of confirmed failures, cosine 0.7.")
        self.failure_yield = gauge("yield", "Confirmed failures per query.")
        self.void = gauge("void_probes", "Probes that earn nothing: near copies, rubbish, refused.")
        self.generation = gauge("generation", "The generation that is being asked.")
        self.coverage = gauge("component_probes", "Probes per component.", "axis", "component")
        self.calibration = gauge(
            "surrogate_fitness",
            "Mean fitness of the last generation's learnt draws: expected before, earned after.",
            "figure",
        )

        # What does it cost, and does it move? Of this process.
        self.records = counter("published", "Interactions published.")
        self.target_errors = counter("target_errors", "Queries without an answer.", "error")
        self.tokens = counter("tokens", "Tokens, as the target counts them.", "kind")
        self.cost = counter("cost", "Cost of all tokens in the currency of the prices.")
        self.seconds = Histogram(
            "ares_prober_answer_seconds",
            "Time of one answer.",
            buckets=SECONDS,
            registry=registry,
        )
        self.reworded_probes = counter(
            "attacker_probes",
            "Probes given to the attacker: worded by it, or why the composer worded them.",
            "kind",
            "outcome",
        )
        self.attacker_tokens = counter(
            "attacker_tokens", "Tokens, as the attacker counts them.", "kind"
        )
        self.unreadable = counter(
            "unreadable_records",
            "Records that name the campaign, cannot be read and are passed over.",
        )
        self.paused_for = gauge("paused", "1 while the campaign waits for this.", "reason")
        for reason in PAUSES:
            self.paused_for.labels(reason).set(0)
        # A rate over a series that begins with its first event never sees that event.
        for error in (TargetError, Unanswerable):
            self.target_errors.labels(error.__name__)
        for kind in ("prompt", "completion"):
            self.tokens.labels(kind)
            self.attacker_tokens.labels(kind)
        for attacked, outcome in itertools.product(get_args(Kind), ("worded", *get_args(Fault))):
            self.reworded_probes.labels(attacked, outcome)

    def progress(self, progress: Progress, components: Counts[str]) -> None:
        """Something was settled."""
        self.queries.set(progress.queries)
        self.budget.set(progress.budget)
        self.failures.set(progress.failures)
        self.unique.set(progress.unique)
        self.failure_yield.set(progress.failures / max(progress.queries, 1))
        self.void.set(progress.void)
        self.generation.set(progress.generation)
        for name, count in components.items():
            axis, _, component = name.partition("=")
            self.coverage.labels(axis, component).set(count)

    def paused(self, reason: str | None) -> None:
        """Waiting for something, or going on."""
        for known in PAUSES:
            self.paused_for.labels(known).set(known == reason)

    def answered(self, answer: Answer) -> None:
        """The target answered."""
        self.seconds.observe(answer.seconds)
        self._spend(self.tokens, answer, self._prices)

    def target_failed(self, error: TargetError) -> None:
        """The target did not answer a query."""
        self.target_errors.labels(type(error).__name__).inc()

    def calibrated(self, calibration: Calibration) -> None:
        """A generation is settled."""
        self.calibration.labels("expected").set(calibration.expected)
        self.calibration.labels("earned").set(calibration.earned)

    def published(self, count: int) -> None:
        """A transaction is committed."""
        self.records.inc(count)

    def attacker_answered(self, answer: Answer) -> None:
        """The attacker answered."""
        self._spend(self.attacker_tokens, answer, self._attacker_prices)

    def passed_over(self, record: UnreadableRecord) -> None:
        """A record that names the campaign cannot be read."""
        self.unreadable.inc()

    def reworded(self, kind: Kind, fault: Fault | None) -> None:
        """The attacker worded a probe, or the composer in its place."""
        self.reworded_probes.labels(kind, fault or "worded").inc()

    def _spend(self, tokens: Counter, answer: Answer, prices: tuple[float, float]) -> None:
        tokens.labels("prompt").inc(answer.prompt_tokens)
        tokens.labels("completion").inc(answer.completion_tokens)
        prompt, completion = prices
        self.cost.inc((answer.prompt_tokens * prompt + answer.completion_tokens * completion) / 1e6)
