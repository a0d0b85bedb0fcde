"""The queue: which item a person gets next, who holds what, who has said what. Pure.

Order: each item draws a number from its verdict's id, weighted by its cell (Efraimidis and
Spirakis 2006): doubtful answers that the reward model likes come first on the whole, nothing
waits for ever, and inside a cell the order is random. That keeps the labels a random sample of
their cell whenever people stop, which the corrected rate rests on (detection/correction.py).
"""

from __future__ import annotations

import hashlib
import math
from bisect import bisect_left, insort
from collections import Counter, OrderedDict, defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Final, NamedTuple

from ares_stream.console.policy import QueuePolicy
from ares_stream.detection.correction import Cell, Decision
from ares_stream.records.label import Label
from ares_stream.records.verdict import FailureClass, Verdict

DECISIONS: Final[Mapping[FailureClass, Decision]] = {
    FailureClass.COUPLED_FAILURE: "flagged",
    FailureClass.POLICY_FAILURE: "flagged",
    FailureClass.CONTESTED: "contested",
    FailureClass.CLEAN: "unflagged",
    FailureClass.REWARD_FAILURE: "unflagged",
}
_WEIGHTS: Final[Mapping[Cell, float]] = {
    Cell("contested", True): 16.0,
    Cell("flagged", True): 8.0,
    Cell("unflagged", True): 4.0,
    Cell("contested", False): 4.0,
    Cell("flagged", False): 1.0,
    Cell("unflagged", False): 1.0,
}


class Place(NamedTuple):
    """Where a record lies."""

    topic: str
    partition: int
    offset: int


@dataclass(frozen=True, slots=True)
class Item:
    """What a person is asked about, without its text: that stays on the topic."""

    verdict: Verdict
    place: Place
    cell: Cell

    @property
    def id(self) -> str:
        """The verdict's id."""
        return self.verdict.id

    @property
    def interaction(self) -> str:
        """The interaction's id: what labels are of."""
        return self.verdict.interaction_id


@dataclass(frozen=True, slots=True)
class Lease:
    """An item is with one person until a time, in seconds of the caller's clock."""

    reviewer: str
    until: float


@dataclass(frozen=True, slots=True)
class Progress:
    """What one person has done."""

    reviewer: str
    labels: int
    harmful: int
    shared: int
    """Interactions that others have labelled as well."""
    agreed: int
    """Of those, where all others said the same."""


def _fraction(purpose: str, name: str) -> float:
    """A number in (0, 1) of a name, the same in every process."""
    raw = hashlib.sha256(f"{purpose}\0{name}".encode()).digest()
    return (int.from_bytes(raw[:8], "big") + 1) / ((1 << 64) + 1)


def rank(item: Item) -> float:
    """The item's place in the order: smaller comes first."""
    return -math.log(_fraction("order", item.id)) / _WEIGHTS[item.cell]


class ReviewQueue:
    """Items, labels and leases in bounded memory. Its clock is an argument of each call."""

    def __init__(self, policy: QueuePolicy) -> None:
        self._policy = policy
        self._items: dict[str, Item] = {}
        self._by_interaction: dict[str, str] = {}
        self._open: list[tuple[float, str]] = []
        self._waiting: Counter[Cell] = Counter()
        """Open items by cell: counted as they come and go, since every page shows it."""
        self._labels: dict[str, dict[str, Label]] = {}
        self._keys: dict[bytes, tuple[str, str]] = {}
        self._leases: dict[str, list[Lease]] = defaultdict(list)
        self._saw: OrderedDict[tuple[str, str], None] = OrderedDict()
        """Interactions with a person who has seen what others say of it: also of interactions that
        are in no item now, of which a later verdict may come."""
        self._skipped: OrderedDict[tuple[str, str], None] = OrderedDict()
        """Verdicts with a person who left them to others, the latest last."""
        self._deciding: set[tuple[str, str]] = set()
        """Interactions with a person whose decision is being written."""
        self.dropped = 0
        """Items that nobody has seen and for which there was no room."""

    # Records

    def add(self, item: Item) -> None:
        """Take an item in; a later verdict on an interaction takes the place of an earlier one."""
        former = self._by_interaction.get(item.interaction)
        if former is not None:
            self._forget(former)
        self._items[item.id] = item
        self._by_interaction[item.interaction] = item.id
        self._sort_in(item)
        while len(self._items) > self._policy.max_items:
            oldest = next(iter(self._items.values()))
            self.dropped += self._is_open(oldest)
            self._forget(oldest.id)

    def add_label(self, key: bytes, label: Label) -> None:
        """Take a person's decision in; an older one changes nothing."""
        held = self._labels.setdefault(label.interaction_id, {})
        former = held.get(label.reviewer)
        if former is not None and former.decided_at > label.decided_at:
            return
        held[label.reviewer] = label
        if label.others_shown_at is not None:
            self.saw_others(label.interaction_id, label.reviewer)
        self._keys[key] = (label.interaction_id, label.reviewer)
        if len(self._keys) > self._policy.max_labels:
            self._pop_label(next(iter(self._keys)))
        self._sort_in_interaction(label.interaction_id)

    def remove_label(self, key: bytes) -> None:
        """A decision was undone."""
        found = self._pop_label(key)
        if found is not None:
            self._sort_in_interaction(found)

    # People

    def take(self, reviewer: str, now: float) -> Item | None:
        """The item that the person holds, else the next one, which is theirs from now on. Those
        that they have skipped come when there is no other, the one they skipped first before all.
        """
        for name in [name for name, held in self._leases.items() if held]:
            item = self._items.get(name)
            if item is not None and self.holds(item, reviewer, now):
                return self._leased(item, reviewer, now)
        for _, name in self._open:
            item = self._items[name]
            if (name, reviewer) not in self._skipped and self.is_free(item, reviewer, now):
                return self._leased(item, reviewer, now)
        for name, who in self._skipped:
            item = self._items.get(name) if who == reviewer else None
            if item is not None and self.is_free(item, reviewer, now):
                return self._leased(item, reviewer, now)
        return None

    def skip(self, item: Item, reviewer: str) -> None:
        """The person leaves this one to others, and gets the others first."""
        self.put_back(item, reviewer)
        self._skipped[item.id, reviewer] = None
        self._skipped.move_to_end((item.id, reviewer))
        if len(self._skipped) > self._policy.max_labels:
            self._skipped.popitem(last=False)

    def begin(self, item: Item, reviewer: str, now: float) -> bool:
        """Whether the person may decide the item; nobody else may then, nor the person by a second
        form, until `end`: a decision is written before it counts."""
        if (item.interaction, reviewer) in self._deciding or not self.is_free(item, reviewer, now):
            return False
        self._deciding.add((item.interaction, reviewer))
        return True

    def end(self, item: Item, reviewer: str) -> None:
        """The decision was written, or could not be."""
        self._deciding.discard((item.interaction, reviewer))

    def put_back(self, item: Item, reviewer: str) -> None:
        """The person does not decide this one."""
        self._leases[item.id] = [
            held for held in self._leases[item.id] if held.reviewer != reviewer
        ]

    def holds(self, item: Item, reviewer: str, now: float) -> bool:
        """Whether the item is with this person."""
        return any(held.reviewer == reviewer for held in self._held(item, now))

    def is_free(self, item: Item, reviewer: str, now: float) -> bool:
        """Whether the person may decide it: an opinion is missing that nobody else is about to
        give, and theirs is not among those given."""
        given = self._labels.get(item.interaction, {})
        if (item.interaction, reviewer) in self._saw:
            return False  # Also after an undo: an opinion is blind, or it is none more.
        busy = {held.reviewer for held in self._held(item, now)}
        busy |= {who for interaction, who in self._deciding if interaction == item.interaction}
        others = len(busy - given.keys() - {reviewer})
        return reviewer not in given and len(given) + others < self.needed(item)

    def saw_others(self, interaction: str, reviewer: str) -> None:
        """The person has been shown what others say of the interaction."""
        self._saw[interaction, reviewer] = None
        self._saw.move_to_end((interaction, reviewer))
        if len(self._saw) > self._policy.max_labels:
            self._saw.popitem(last=False)

    def find(self, name: str) -> Item | None:
        """The item of a verdict's id."""
        return self._items.get(name)

    def item_of(self, interaction: str) -> Item | None:
        """The item of an interaction."""
        name = self._by_interaction.get(interaction)
        return None if name is None else self._items.get(name)

    # What people have said

    def needed(self, item: Item) -> int:
        """Opinions that the item needs: two of a random share, a third where two differ."""
        if _fraction("second opinion", item.interaction) > self._policy.second_opinions:
            return 1
        said = {label.harmful for label in self._labels.get(item.interaction, {}).values()}
        return 3 if len(said) == 2 else 2

    def labels(self, interaction: str) -> list[Label]:
        """All opinions on an interaction, oldest first."""
        return sorted(self._labels.get(interaction, {}).values(), key=lambda item: item.decided_at)

    def of(self, reviewer: str, most: int = 50) -> list[Label]:
        """A person's decisions, newest first."""
        mine = [held[reviewer] for held in self._labels.values() if reviewer in held]
        return sorted(mine, key=lambda item: item.decided_at, reverse=True)[:most]

    @property
    def waiting(self) -> int:
        """Items that lack an opinion."""
        return len(self._open)

    def waiting_by_cell(self) -> dict[Cell, int]:
        """Items that lack an opinion, by cell."""
        return dict(+self._waiting)

    def progress(self) -> list[Progress]:
        """One row per person, the busiest first."""
        rows: dict[str, list[int]] = defaultdict(lambda: [0, 0, 0, 0])
        for held in self._labels.values():
            for label in held.values():
                row = rows[label.reviewer]
                row[0] += 1
                row[1] += label.harmful
                if len(held) > 1:
                    row[2] += 1
                    row[3] += len({item.harmful for item in held.values()}) == 1
        return sorted((Progress(name, *row) for name, row in rows.items()),
                      key=lambda item: (-item.labels, item.reviewer))  # fmt: skip

    def opinions(self) -> Iterator[Mapping[str, bool]]:
        """By person, of each interaction that more than one person has labelled."""
        for held in self._labels.values():
            if len(held) > 1:
                yield {name: label.harmful for name, label in held.items()}

    # Inside

    def _held(self, item: Item, now: float) -> list[Lease]:
        held = [lease for lease in self._leases.get(item.id, ()) if lease.until > now]
        if item.id in self._leases:
            if held:
                self._leases[item.id] = held
            else:
                del self._leases[item.id]
        return held

    def _leased(self, item: Item, reviewer: str, now: float) -> Item:
        self.put_back(item, reviewer)
        self._leases[item.id].append(Lease(reviewer, now + self._policy.lease_seconds))
        return item

    def _is_open(self, item: Item) -> bool:
        return len(self._labels.get(item.interaction, {})) < self.needed(item)

    def _sort_in(self, item: Item) -> None:
        entry = (rank(item), item.id)
        place = bisect_left(self._open, entry)
        listed = place < len(self._open) and self._open[place] == entry
        if self._is_open(item) and not listed:
            insort(self._open, entry)
            self._waiting[item.cell] += 1
        elif listed and not self._is_open(item):
            self._close(place, item)
            self._leases.pop(item.id, None)

    def _sort_in_interaction(self, interaction: str) -> None:
        item = self.item_of(interaction)
        if item is None:
            return
        for label in self._labels.get(interaction, {}):
            self.put_back(item, label)
        self._sort_in(item)

    def _forget(self, name: str) -> None:
        item = self._items.pop(name)
        self._leases.pop(name, None)
        if self._by_interaction.get(item.interaction) == name:
            del self._by_interaction[item.interaction]
        entry = (rank(item), name)
        place = bisect_left(self._open, entry)
        if place < len(self._open) and self._open[place] == entry:
            self._close(place, item)

    def _close(self, place: int, item: Item) -> None:
        del self._open[place]
        self._waiting[item.cell] -= 1

    def _pop_label(self, key: bytes) -> str | None:
        found = self._keys.pop(key, None)
        if found is None:
            return None
        interaction, reviewer = found
        held = self._labels.get(interaction, {})
        held.pop(reviewer, None)
        if not held:
            self._labels.pop(interaction, None)
        return interaction
