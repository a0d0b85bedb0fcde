"""Was every record settled exactly once? Counted from the topics alone. Pure.

Takes what an independent read_committed reader found, and trusts no counter of the scorer.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass

from ares_stream.records.verdict import FailureClass, Verdict
from ares_stream.streaming.deadletters import source_of
from ares_stream.streaming.records import InboundRecord

Place = tuple[str, int, int]
"""Topic, partition, offset."""


@dataclass(frozen=True, slots=True)
class Account:
    """Records that came in, and what became of them.

    `lost` have neither verdict nor dead letter; `doubled` have more than one of them; `foreign`
    verdicts and dead letters name a record that never came in; `disordered` verdicts follow,
    within one key's partition, a verdict of a later offset. `repair` counts records of the
    repair topic, `unmatched` the coupled verdicts without exactly one of them, or the reverse.
    """

    sent: int
    verdicts: int
    dead_letters: int
    coupled: int
    repair: int
    lost: int
    doubled: int
    foreign: int
    disordered: int
    unmatched: int

    @property
    def exactly_once(self) -> bool:
        """Nothing lost, doubled, invented, out of order or missing from the repair topic."""
        return not (self.lost or self.doubled or self.foreign or self.disordered or self.unmatched)


def account(
    inputs: Iterable[InboundRecord],
    verdicts: Iterable[Verdict],
    dead_letters: Iterable[InboundRecord],
    repair: Iterable[Verdict],
) -> Account:
    """Compare. `verdicts` in the order in which each partition of their topic holds them;
    `repair` are the verdicts inside the records of the repair topic."""
    came_in = Counter((item.topic, item.partition, item.offset) for item in inputs)
    made = list(verdicts)
    letters = [source_of(item) for item in dead_letters]
    settled = Counter([*map(_place, made), *letters])
    coupled = Counter(
        item.id
        for item in made
        if item.failure_class is FailureClass.COUPLED_FAILURE and item.lane != "anchor"
    )
    repairs = Counter(item.id for item in repair)
    latest: dict[tuple[str, int, str], int] = defaultdict(lambda: -1)
    disordered = 0
    for item in made:
        key = (item.source.topic, item.source.partition, item.interaction_id)
        disordered += item.source.offset < latest[key]
        latest[key] = max(latest[key], item.source.offset)
    return Account(
        sent=len(came_in),
        verdicts=len(made),
        dead_letters=len(letters),
        coupled=sum(coupled.values()),
        repair=sum(repairs.values()),
        lost=len(came_in.keys() - settled.keys()),
        doubled=sum(count - 1 for count in settled.values()),
        foreign=len(settled.keys() - came_in.keys()),
        disordered=disordered,
        unmatched=sum(abs(coupled[key] - repairs[key]) for key in coupled.keys() | repairs.keys()),
    )


def _place(verdict: Verdict) -> Place:
    source = verdict.source
    return source.topic, source.partition, source.offset
