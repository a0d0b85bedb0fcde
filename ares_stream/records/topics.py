"""The topics: what each must be like, and how what exists differs. Pure.

`ares topics create` makes them and `ares topics check` compares; both go through
ares_stream.streaming.admin for the I/O.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

DAY_MS: Final = 86_400_000
AUDIT_DAYS: Final = 400
"""An audit of a year needs the year and some weeks to run in."""
MIB: Final = 1 << 20
REPLICATION: Final = 3
"""Copies of each partition where there are brokers enough: one may fail while another is mended."""

PRODUCTION: Final = "interactions.production"
PROBE: Final = "interactions.probe"
ANCHOR: Final = "interactions.anchor"
VERDICTS: Final = "verdicts"
REPAIR: Final = "repair"
REVIEW: Final = "review"
LABELS: Final = "labels"
RELEASES: Final = "releases"
REPAIRS: Final = "repairs"
RATES: Final = "rates"
ALARMS: Final = "alarms"
DEADLETTERS: Final = "deadletters"
CHECKPOINTS: Final = "checkpoints"
NOTARY: Final = "notary"
SALTS: Final = "salts"

FIRST_PARTITION: Final = 0
"""Where records of the topics that need one partition are written, however many the topic has been
given since: what follows what, and which record of a key is the last, is said by one partition."""


@dataclass(frozen=True, slots=True)
class TopicSpec:
    """What one topic must be like. `config` holds Kafka's own names and values."""

    name: str
    partitions: int
    replication: int
    config: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class ActualTopic:
    """What a broker says of one topic."""

    partitions: int
    replication: int
    config: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Difference:
    """One way in which a topic is not as specified."""

    topic: str
    what: str
    expected: str
    actual: str

    def __str__(self) -> str:
        return f"{self.topic}: {self.what} is {self.actual}, expected {self.expected}"


def topic_name(prefix: str, topic: str) -> str:
    """The full name of one of the topics above."""
    return f"{prefix}{topic}"


def durable(replication: int) -> dict[str, str]:
    """Topic configuration under which one broker may be down without a loss and without a
    standstill: one replica less than there are must have a record before it counts."""
    return {"min.insync.replicas": str(max(1, replication - 1))}


def specs(
    prefix: str = "ares.",
    *,
    partitions: int = 6,
    replication: int = REPLICATION,
    audit_days: int = AUDIT_DAYS,
) -> tuple[TopicSpec, ...]:
    """Every topic of the system.

    `partitions` bounds how many scorers can share the work. Topics that a person or one
    process writes need one partition, and are written to the first of several.
    """
    safe = durable(replication)
    audit = safe | {"cleanup.policy": "delete", "retention.ms": str(audit_days * DAY_MS)}
    month = safe | {"cleanup.policy": "delete", "retention.ms": str(30 * DAY_MS)}
    compact = safe | {"cleanup.policy": "compact"}
    # A verdict's topic holds the interaction once more where it travels with its text.
    large = {"max.message.bytes": str(4 * MIB)}
    table: tuple[tuple[str, int, Mapping[str, str]], ...] = (
        (PRODUCTION, partitions, audit | large),
        (PROBE, partitions, audit | large),
        (ANCHOR, 1, audit | large),
        (VERDICTS, partitions, audit),
        (REPAIR, partitions, month | large),
        (REVIEW, partitions, month | large),
        # As long as a review item: what a deletion says of its author is asked for until then.
        (LABELS, partitions, compact | {"delete.retention.ms": month["retention.ms"]}),
        (RELEASES, 1, compact),
        (REPAIRS, 1, audit),
        (RATES, 1, compact),
        (ALARMS, 1, audit),
        (DEADLETTERS, partitions, month | large),
        (CHECKPOINTS, 1, safe | {"cleanup.policy": "delete", "retention.ms": "-1"} | large),
        (NOTARY, 1, compact | large),
        (SALTS, 1, compact),
    )
    return tuple(
        TopicSpec(topic_name(prefix, name), count, replication, config)
        for name, count, config in table
    )


def compare(wanted: Sequence[TopicSpec], actual: Mapping[str, ActualTopic]) -> list[Difference]:
    """Every difference, in the order of the specification; a missing topic is one difference.

    More partitions than specified are fine: scaling out is not a fault.
    """
    found: list[Difference] = []
    for spec in wanted:
        topic = actual.get(spec.name)
        if topic is None:
            found.append(Difference(spec.name, "the topic", "to exist", "missing"))
            continue
        if topic.partitions < spec.partitions:
            found.append(
                Difference(
                    spec.name, "partitions", f"at least {spec.partitions}", str(topic.partitions)
                )
            )
        if topic.replication != spec.replication:
            found.append(
                Difference(spec.name, "replication", str(spec.replication), str(topic.replication))
            )
        for key, value in spec.config.items():
            if topic.config.get(key) != value:
                found.append(Difference(spec.name, key, value, topic.config.get(key, "not set")))
    return found
