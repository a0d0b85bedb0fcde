"""What came of every input record, from the topics alone. Pure; imports nothing of the package.

Of each record that a read_committed consumer sees on the input topic there must be one verdict or
one dead letter, and of a record of an aborted transaction nothing.
"""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, Final, Literal

Place = tuple[str, int, int]
"""Topic, partition, offset."""
REFUSED: Final = "refused"
"""What is expected of a record that no scorer can read."""

VIOLATIONS: Final = (
    "acknowledged_lost",
    "lost",
    "doubled",
    "out_of_order",
    "aborted_visible",
    "from_nowhere",
    "coupled_without_repair",
    "repair_without_coupled",
    "wrong_class",
    "refused_wrongly",
    "scored_wrongly",
    "dead_letters_changed",
)
"""Counts that must be 0."""


@dataclass(frozen=True, slots=True)
class Sent:
    """What a producer knows of a record that the broker acknowledged."""

    expected: str
    """The failure class that its words give, or REFUSED."""
    at: float
    """Seconds of the monotonic clock when it was handed to the producer."""
    fate: Literal["plain", "committed", "aborted"] = "plain"


@dataclass(frozen=True, slots=True)
class Seen:
    """A record as a read_committed consumer of another library returns it."""

    place: Place
    key: bytes | None
    value: bytes | None
    """Left out of an input record: `digest` stands for it."""
    digest: str
    """SHA-256 of the value; empty for null."""
    headers: Mapping[str, bytes | None] = field(default_factory=dict)


def dead_place(letter: Seen) -> Place:
    """The record that a dead letter stands for."""
    name = "__connect.errors."
    topic, partition, offset = (
        (letter.headers[f"{name}{part}"] or b"").decode()
        for part in ("topic", "partition", "offset")
    )
    return topic, int(partition), int(offset)


def verdict_place(verdict: Mapping[str, Any]) -> Place:
    """The record that a verdict is of."""
    source = verdict["source"]
    return source["topic"], source["partition"], source["offset"]


def check(
    sent: Mapping[Place, Sent],
    inputs: Iterable[Seen],
    verdicts: Iterable[Seen],
    repair: Iterable[Seen],
    dead: Iterable[Seen],
) -> dict[str, int]:
    """Counts of everything, VIOLATIONS among them. Topics are given in the order of each
    partition's offsets; `sent` holds what was acknowledged, by where it stands."""
    visible = {record.place: record for record in inputs}
    decided = [(record, json.loads(record.value or b"")) for record in verdicts]
    repaired = Counter(json.loads(item.value or b"")["verdict"]["id"] for item in repair)
    letters = [(dead_place(letter), letter) for letter in dead]

    scored = Counter(verdict_place(verdict) for _, verdict in decided)
    refused = Counter(place for place, _ in letters)
    outputs = scored + refused
    aborted = {place for place, record in sent.items() if record.fate == "aborted"}
    coupled = {v["id"] for _, v in decided if v["failure_class"] == "coupled_failure"}
    expected = {place: record.expected for place, record in sent.items()}
    whole = [
        (place, letter)
        for place, letter in letters
        if letter.headers.get("ares.errors.kept") != b"coordinates"
    ]
    return {
        "inputs": len(visible),
        "aborted_inputs": len(aborted),
        "verdicts": len(decided),
        "coupled": len(coupled),
        "dead_letters": len(letters),
        "dead_letters_whole": len(whole),
        "dead_letters_by_coordinates": len(letters) - len(whole),
        "acknowledged_lost": len(sent.keys() - aborted - visible.keys()),
        "lost": len(visible.keys() - outputs.keys()),
        "doubled": sum(count - 1 for count in outputs.values()),
        "out_of_order": _out_of_order(decided),
        "aborted_visible": len(aborted & (visible.keys() | outputs.keys())),
        "from_nowhere": len(outputs.keys() - visible.keys() - aborted),
        "coupled_without_repair": len(coupled - repaired.keys()),
        "repair_without_coupled": sum((repaired - Counter(coupled)).values()),
        "wrong_class": sum(
            expected.get(verdict_place(v)) not in (v["failure_class"], REFUSED, None)
            for _, v in decided
        ),
        "refused_wrongly": sum(expected.get(place) not in (REFUSED, None) for place in refused),
        "scored_wrongly": sum(expected.get(place) == REFUSED for place in scored),
        "dead_letters_changed": sum(
            place in visible
            and (letter.key, letter.digest) != (visible[place].key, visible[place].digest)
            for place, letter in whole
        ),
    }


def _out_of_order(decided: Iterable[tuple[Seen, Mapping[str, Any]]]) -> int:
    """Verdicts of one key that stand before those of its earlier records."""
    by_key: dict[tuple[str, int, bytes | None], list[int]] = defaultdict(list)
    for record, verdict in decided:
        topic, partition, offset = verdict_place(verdict)
        by_key[topic, partition, record.key].append(offset)
    return sum(a > b for offsets in by_key.values() for a, b in pairwise(offsets))
