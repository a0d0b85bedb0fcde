"""What each service may do on the broker: Kafka's access control lists, and no more. Pure.

`ares topics acls` prints them for kafka-acls and for Strimzi; helm/generate.py writes them into
the chart. tests/integration/test_acls.py runs each service with exactly these, and with each of
them taken away.

Kafka has Read and Write imply Describe, and a transactional producer needs no right on the
cluster (Kafka 4.3 documentation, 7.5 "Authorization and ACLs").
"""

from __future__ import annotations

import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Literal

from ares_stream.records import topics
from ares_stream.records.topics import specs, topic_name

Resource = Literal["topic", "group", "transactional-id"]
Operation = Literal["Read", "Write", "Create", "Describe", "DescribeConfigs"]
Service = Literal[
    "topics", "producer", "scorer", "monitor", "prober", "repairer", "notary", "console",
    "replayer", "eraser",
]  # fmt: skip

MEANING: Final[Mapping[Service, str]] = {
    "topics": "`ares topics create` and `ares topics check`",
    "producer": "your application, which sends conversations",
    "scorer": "`ares scorer`",
    "monitor": "`ares monitor`",
    "prober": "`ares prober`, `ares probe run`, `ares loop`",
    "repairer": "`ares repairer`",
    "notary": "`ares notary`",
    "console": "`ares console`, and people who label, acknowledge and release: `ares anchors "
    "make`, `ares alarms`, `ares release`, `ares review`, `ares bundle recalibrate`",
    "replayer": "audits, which read everything: `ares replay`, `ares audit verify` and `prove`, "
    "`ares trace`, `ares archive write`, `ares verdicts`, `ares rates`, `ares doctor`, "
    "`ares evidence`, `ares forecast` (`make` with `--offline`)",
    "eraser": "`ares audit erase`, which nobody else may",
}


@dataclass(frozen=True, slots=True)
class Acl:
    """What is allowed on one resource, or on all whose names begin so."""

    resource: Resource
    name: str
    operations: tuple[Operation, ...]
    prefixed: bool = False


@dataclass(frozen=True, slots=True)
class Names:
    """The names that the settings choose. Without `inputs` the scorer reads the three interaction
    topics of the prefix."""

    prefix: str = "ares."
    inputs: Sequence[str] = ()
    groups: Mapping[str, str] = field(default_factory=dict)
    """Consumer group by service: of scorer, monitor, repairer and notary."""
    notarised: Sequence[str] = (
        *(topics.VERDICTS, topics.REPAIR, topics.LABELS),
        *(topics.RELEASES, topics.REPAIRS, topics.DEADLETTERS),
    )
    """Topics that the notary signs, without the prefix."""

    def topic(self, name: str) -> str:
        """The full name of one of our topics."""
        return topic_name(self.prefix, name)

    def interactions(self) -> tuple[str, ...]:
        """The topics that the scorer reads."""
        ours = (topics.PRODUCTION, topics.PROBE, topics.ANCHOR)
        return tuple(self.inputs) or tuple(self.topic(name) for name in ours)

    def group(self, service: Service) -> str:
        """The consumer group of a service."""
        return self.groups.get(service, f"ares-{service}")


def acls(service: Service, names: Names) -> tuple[Acl, ...]:
    """What the service needs, one entry a resource, in the table's order."""
    merged: dict[tuple[Resource, str, bool], tuple[Operation, ...]] = {}
    for item in _TABLE[service](names):
        place = item.resource, item.name, item.prefixed
        known = merged.get(place, ())
        merged[place] = known + tuple(new for new in item.operations if new not in known)
    return tuple(
        Acl(resource, name, operations, prefixed)
        for (resource, name, prefixed), operations in merged.items()
    )


def kafka_acls(entries: Sequence[Acl], principal: str, bootstrap: str) -> list[str]:
    """A line of kafka-acls.sh for each entry."""
    lines = []
    for item in entries:
        words = ["kafka-acls.sh", "--bootstrap-server", bootstrap, "--add"]
        words += ["--allow-principal", principal]
        for operation in item.operations:
            words += ["--operation", operation]
        words += [f"--{item.resource}", item.name]
        if item.prefixed:
            words += ["--resource-pattern-type", "prefixed"]
        lines.append(shlex.join(words))
    return lines


def kafka_user(
    entries: Sequence[Acl], user: str, cluster: str, authentication: str
) -> dict[str, Any]:
    """A KafkaUser of Strimzi (kafka.strimzi.io/v1) for its user operator."""
    return {
        "apiVersion": "kafka.strimzi.io/v1",
        "kind": "KafkaUser",
        "metadata": {"name": user, "labels": {"strimzi.io/cluster": cluster}},
        "spec": {
            "authentication": {"type": authentication},
            "authorization": {
                "type": "simple",
                "acls": [
                    {
                        "resource": {
                            "type": STRIMZI[item.resource],
                            "name": item.name,
                            "patternType": "prefix" if item.prefixed else "literal",
                        },
                        "operations": list(item.operations),
                    }
                    for item in entries
                ],
            },
        },
    }


STRIMZI: Final[Mapping[Resource, str]] = {
    "topic": "topic",
    "group": "group",
    "transactional-id": "transactionalId",
}
"""Strimzi's names of the resources."""


def _reads(names: Names, *wanted: str) -> list[Acl]:
    return [Acl("topic", names.topic(name), ("Read",)) for name in wanted]


def _writes(names: Names, *wanted: str) -> list[Acl]:
    return [Acl("topic", names.topic(name), ("Write",)) for name in wanted]


def _topics(names: Names) -> list[Acl]:
    ours = [spec.name for spec in specs(names.prefix)]
    own = [name for name in names.interactions() if name not in ours]
    return [Acl("topic", name, ("Create", "Describe", "DescribeConfigs")) for name in ours + own]


def _producer(names: Names) -> list[Acl]:
    # Probes and anchors come from the prober and the monitor.
    made = {names.topic(topics.PROBE), names.topic(topics.ANCHOR)}
    return [Acl("topic", name, ("Write",)) for name in names.interactions() if name not in made]


def _scorer(names: Names) -> list[Acl]:
    written = (topics.VERDICTS, topics.REPAIR, topics.REVIEW, topics.DEADLETTERS)
    return [
        *(Acl("topic", name, ("Read",)) for name in names.interactions()),
        *_reads(names, topics.RELEASES),
        # What is too large for a topic is known before it is sent.
        *(Acl("topic", names.topic(name), ("Write", "DescribeConfigs")) for name in written),
        Acl("group", names.group("scorer"), ("Read",)),
        # One producer an input partition: see SessionSpec.transactional_id.
        Acl("transactional-id", f"{names.prefix}scorer.", ("Write",), prefixed=True),
    ]


def _monitor(names: Names) -> list[Acl]:
    followed = (
        *(topics.VERDICTS, topics.LABELS, topics.DEADLETTERS),
        *(topics.RATES, topics.ALARMS, topics.RELEASES),
    )
    return [
        *_reads(names, *followed),
        *_writes(names, topics.RATES, topics.ALARMS, topics.ANCHOR),
        Acl("group", names.group("monitor"), ("Read",)),
        Acl("transactional-id", f"{names.prefix}monitor", ("Write",)),
    ]


def _prober(names: Names) -> list[Acl]:
    return [
        *_reads(names, topics.PROBE, topics.VERDICTS, topics.DEADLETTERS, topics.REPAIRS),
        *_writes(names, topics.PROBE),
        # How far the scorer is behind: production goes first.
        Acl("topic", names.topic(topics.PRODUCTION), ("Describe",)),
        Acl("group", names.group("scorer"), ("Describe",)),
        # One name a campaign.
        Acl("transactional-id", f"{names.prefix}prober.", ("Write",), prefixed=True),
    ]


def _repairer(names: Names) -> list[Acl]:
    return [
        *_reads(names, topics.REPAIR, topics.LABELS, topics.REPAIRS, topics.RELEASES),
        *_writes(names, topics.REPAIRS, topics.RELEASES),
        Acl("group", names.group("repairer"), ("Read",)),
    ]


def _notary(names: Names) -> list[Acl]:
    own = (topics.NOTARY, topics.SALTS, topics.CHECKPOINTS)
    return [
        *_reads(names, *names.notarised, topics.RELEASES, *own),
        *_writes(names, *own),
        Acl("group", names.group("notary"), ("Read",)),
        Acl("transactional-id", f"{names.prefix}notary", ("Write",)),
    ]


def _console(names: Names) -> list[Acl]:
    decided = (topics.LABELS, topics.ALARMS, topics.RELEASES)
    return [
        *_reads(names, topics.REVIEW, topics.REPAIR, topics.REPAIRS, topics.RATES, *decided),
        *_writes(names, *decided),
    ]


def _replayer(names: Names) -> list[Acl]:
    ours = [spec.name for spec in specs(names.prefix)]
    own = [name for name in names.interactions() if name not in ours]
    # Retention is part of what is verified.
    return [Acl("topic", name, ("Read", "DescribeConfigs")) for name in ours + own]


def _eraser(names: Names) -> list[Acl]:
    return [Acl("topic", names.topic(topics.SALTS), ("Read", "Write"))]


_TABLE: Final[Mapping[Service, Callable[[Names], list[Acl]]]] = {
    "topics": _topics,
    "producer": _producer,
    "scorer": _scorer,
    "monitor": _monitor,
    "prober": _prober,
    "repairer": _repairer,
    "notary": _notary,
    "console": _console,
    "replayer": _replayer,
    "eraser": _eraser,
}
SERVICES: Final[tuple[Service, ...]] = tuple(_TABLE)
