"""The checker of `ares bench chaos` sees every kind of fault, each planted by hand."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field, replace

import pytest

from ares_stream.lab.experiments.chaos.checker import REFUSED, VIOLATIONS, Place, Seen, Sent, check

GOOD = ("in", 0, 0)
COUPLED = ("in", 0, 1)
PILL = ("in", 0, 2)
ABORTED = ("in", 0, 3)


def verdict(place: Place, failure: str = "clean", at: int = 0, identity: str = "") -> Seen:
    topic, partition, offset = place
    body = {
        "id": identity or f"verdict-{offset}",
        "failure_class": failure,
        "source": {"topic": topic, "partition": partition, "offset": offset},
    }
    return Seen(("verdicts", 0, at), b"k", json.dumps(body).encode(), "")


def dead(place: Place, digest: str = "of the value") -> Seen:
    names = ("topic", "partition", "offset")
    headers = {
        f"__connect.errors.{name}": str(part).encode()
        for name, part in zip(names, place, strict=True)
    }
    return Seen(("dead", 0, 0), b"k", None, digest, headers)


@dataclass
class Run:
    """Four records: one clean, one coupled, one that cannot be read, one aborted."""

    sent: dict[Place, Sent] = field(
        default_factory=lambda: {
            GOOD: Sent("clean", 0.0),
            COUPLED: Sent("coupled_failure", 0.0, "committed"),
            PILL: Sent(REFUSED, 0.0),
            ABORTED: Sent("clean", 0.0, "aborted"),
        }
    )
    inputs: list[Seen] = field(
        default_factory=lambda: [
            Seen(place, b"k", None, "of the value") for place in (GOOD, COUPLED, PILL)
        ]
    )
    verdicts: list[Seen] = field(
        default_factory=lambda: [verdict(GOOD), verdict(COUPLED, "coupled_failure", 1)]
    )
    repair: list[Seen] = field(
        default_factory=lambda: [
            Seen(("repair", 0, 0), b"k", b'{"verdict": {"id": "verdict-1"}}', "")
        ]
    )
    dead: list[Seen] = field(default_factory=lambda: [dead(PILL)])

    def counts(self) -> dict[str, int]:
        return check(self.sent, self.inputs, self.verdicts, self.repair, self.dead)


PLANTED: dict[str, Callable[[Run], object]] = {
    "acknowledged_lost": lambda run: run.sent.update({("in", 0, 9): Sent("clean", 0.0)}),
    "lost": lambda run: run.verdicts.pop(0),
    "doubled": lambda run: run.dead.append(dead(PILL)),
    "out_of_order": lambda run: run.verdicts.reverse(),
    "aborted_visible": lambda run: run.verdicts.append(verdict(ABORTED)),
    "from_nowhere": lambda run: run.verdicts.append(verdict(("in", 0, 8))),
    "coupled_without_repair": lambda run: run.repair.clear(),
    "repair_without_coupled": lambda run: run.repair.append(run.repair[0]),
    "wrong_class": lambda run: run.verdicts.__setitem__(0, verdict(GOOD, "contested")),
    "dead_letters_changed": lambda run: run.dead.__setitem__(0, dead(PILL, "of another")),
}


def test_a_run_without_a_fault_has_no_violation() -> None:
    counts = Run().counts()
    assert {name: counts[name] for name in VIOLATIONS if counts[name]} == {}
    assert (counts["inputs"], counts["verdicts"], counts["dead_letters"]) == (3, 2, 1)
    assert (counts["coupled"], counts["aborted_inputs"], counts["dead_letters_whole"]) == (1, 1, 1)


@pytest.mark.parametrize("kind", PLANTED)
def test_a_planted_fault_is_counted_once_and_as_nothing_else(kind: str) -> None:
    run = Run()
    PLANTED[kind](run)
    counts = run.counts()
    assert {name: counts[name] for name in VIOLATIONS if counts[name]} == {kind: 1}


def test_a_good_record_that_is_refused_and_a_bad_one_that_is_scored_are_counted() -> None:
    run = Run()
    run.verdicts[0] = verdict(PILL)
    run.dead[0] = dead(GOOD)
    counts = run.counts()
    assert (counts["refused_wrongly"], counts["scored_wrongly"], counts["lost"]) == (1, 1, 0)


def test_every_violation_is_planted() -> None:
    assert {*PLANTED, "refused_wrongly", "scored_wrongly"} == {*VIOLATIONS}


def test_a_dead_letter_by_coordinates_is_not_compared_with_the_record() -> None:
    run = Run()
    letter = dead(PILL, "")
    run.dead[0] = replace(letter, headers={**letter.headers, "ares.errors.kept": b"coordinates"})
    counts = run.counts()
    assert (counts["dead_letters_by_coordinates"], counts["dead_letters_changed"]) == (1, 0)
