"""All that the monitor knows: slices, the review sample with its labels, anchors, positions. Pure.

The same verdicts and labels give the same ledger in whatever order partitions are read, as long as
its bounds are not reached; past them what came first is kept apart and the rest is counted
together, which `folded` shows.
"""

from __future__ import annotations

import heapq
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Final, NamedTuple

from ares_stream.detection.anchors import AnchorTally
from ares_stream.detection.contradictions import (
    check_anchors,
    check_rates,
    check_sample,
    check_state,
)
from ares_stream.detection.correction import Cell, Sampled, review_shares
from ares_stream.detection.tallies import (
    CELLS,
    WINDOW_SECONDS,
    SliceTally,
    WatchState,
    cell_name,
    cluster_group,
    decision_of,
)
from ares_stream.errors import DecodeError
from ares_stream.records.base import OffsetRange, instant
from ares_stream.records.interaction import Lane, Policy
from ares_stream.records.label import Label
from ares_stream.records.observation import Observation
from ares_stream.records.rates import (
    STATE_KEY,
    AnchorAnswers,
    AnchorFigures,
    MonitorState,
    Position,
    Rates,
    RateSlice,
    SampledVerdict,
    Window,
)

Written = Rates | AnchorFigures | AnchorAnswers | SampledVerdict | MonitorState
OTHER: Final = "(other)"
OLDER: Final = "(older)"
EVERY: Final = "(all)"
MAX_SETS: Final = 8
"""Anchor sets that are kept; the longest silent is let go."""
MAX_ATTRIBUTES: Final = 8
"""Attributes that are sliced by: each brings `max_values` slices per version."""
_SPAN: Final = 16**13
"""As in the scorer: a verdict's id is a draw in [0, 1)."""


@dataclass(frozen=True, slots=True)
class LedgerPolicy:
    """What is kept apart, and how much of it."""

    slices: tuple[str, ...] | None = ()
    """Attributes to slice by; None slices by the first MAX_ATTRIBUTES that come."""
    cluster: str | None = None
    """The attribute whose values are not independent of each other inside: a user, a family."""
    max_values: int = 50
    """Values of an attribute; further ones are counted as OTHER."""
    max_versions: int = 100
    """Policy versions and reward releases of a lane; the longest silent are counted as OLDER."""
    max_samples: int = 20_000
    """Sampled verdicts that labels can correct."""
    review_shares: Mapping[Cell, float] = field(default_factory=lambda: dict.fromkeys(CELLS, 0.01))
    """Share of each cell that the scorer sends to people whatever its verdict says."""


class Group(NamedTuple):
    """A policy version under one reward release, in one lane."""

    lane: Lane
    policy: str
    version: str
    reward: str


class _Group:
    __slots__ = ("samples", "values", "whole")

    def __init__(self, whole: SliceTally) -> None:
        self.whole = whole
        self.samples: set[str] = set()
        self.values: dict[str, dict[str, SliceTally]] = {}

    def tallies(self) -> Iterator[SliceTally]:
        yield self.whole
        for values in self.values.values():
            yield from values.values()


@dataclass(slots=True)
class _Sample:
    record: SampledVerdict
    group: Group
    truth: bool | None = None


class Ledger:
    """The monitor's memory. `add` and `add_label` take records in; `changes` says what to write."""

    def __init__(self, policy: LedgerPolicy) -> None:
        self.policy = policy
        self.groups: dict[Group, _Group] = {}
        self.anchors: dict[str, AnchorTally] = {}
        self.positions: dict[tuple[str, int], int] = {}
        self.logs: dict[tuple[str, int], str] = {}
        """Which log each position is of; see streaming.log_identity."""
        self.gaps: list[OffsetRange] = []
        self.unreadable: Counter[str] = Counter()
        self.folded: Counter[str] = Counter()
        self.lanes: dict[str, int] = {}
        """Time of each lane's last verdict, Unix milliseconds."""
        self.deadletters: dict[int, int] = {}
        """Dead letters by window."""
        self.watches: dict[str, WatchState] = {}
        self._samples: dict[str, _Sample] = {}
        self._by_interaction: dict[str, list[str]] = defaultdict(list)
        self._largest: list[tuple[int, str]] = []
        self._labels: dict[str, dict[bytes, Label]] = defaultdict(dict)
        """By interaction and key."""
        self._label_keys: dict[bytes, str] = {}
        self._new_samples: set[str] = set()
        self._gone: set[bytes] = set()

    # Taking in

    def add(
        self,
        seen: Observation,
        stamp_ms: int,
        place: tuple[int, int],
        harmful: bool | None = None,
    ) -> None:
        """Count one verdict; `place` is its partition and offset, `stamp_ms` its record's time.

        `harmful` is what people said of it, where that is known already and the verdict was drawn
        at random for them; labels that come later go through `add_label`.
        """
        self.lanes[seen.lane] = max(stamp_ms, self.lanes.get(seen.lane, 0))
        if seen.anchor is not None:
            if not self._anchor_set(seen.anchor.set).add(seen, stamp_ms):
                self.folded["anchor"] += 1
            return
        name = Group(seen.lane, seen.policy, seen.version, seen.reward)
        group = self.groups.get(name)
        if group is None:
            group = self._open(name)
        cluster = None
        if self.policy.cluster:
            # A verdict without the attribute is like no other.
            cluster = cluster_group(seen.attributes.get(self.policy.cluster, seen.interaction_id))
        group.whole.add(seen, stamp_ms, place, cluster)
        sliced = self._sliced(name, group, seen)
        for tally in sliced:
            tally.add(seen, stamp_ms, place, cluster)
        if harmful is not None:
            for tally in (group.whole, *sliced):
                tally.add_label(Cell(decision_of(seen.failure_class), seen.liked), harmful, cluster)
        elif seen.lane == "production":
            self._sample(seen, name, cluster)

    def _anchor_set(self, name: str) -> AnchorTally:
        found = self.anchors.get(name)
        if found is None:
            found = self.anchors[name] = AnchorTally(name)
            if len(self.anchors) > MAX_SETS:
                others = (item for item in self.anchors.values() if item is not found)
                silent = min(others, key=lambda item: (item.newest, item.set))
                self._gone.update(silent.keys())
                self.folded["anchor"] += sum(silent.decisions.values())
                del self.anchors[silent.set]
        return found

    def _sliced(self, name: Group, group: _Group, seen: Observation) -> list[SliceTally]:
        attributes = seen.attributes
        if self.policy.slices is not None:
            return [
                self._slice(name, group, attribute, attributes[attribute])
                for attribute in self.policy.slices
                if attribute in attributes
            ]
        found = []
        for attribute, value in attributes.items():
            if attribute in group.values or len(group.values) < MAX_ATTRIBUTES:
                found.append(self._slice(name, group, attribute, value))
            else:
                self.folded[OTHER] += 1
        return found

    def _open(self, name: Group) -> _Group:
        group = self.groups[name] = _Group(SliceTally(_key(name), bool(self.policy.cluster)))
        lane = [item for item in self.groups if item.lane == name.lane and item.version != OLDER]
        if len(lane) > self.policy.max_versions:
            # Never the one that is being opened: it has no verdict yet.
            oldest = min(
                (item for item in lane if item != name),
                key=lambda item: (self.groups[item].whole.last_ms, item),
            )
            self._close(oldest)
        return group

    def _close(self, name: Group) -> None:
        gone = self.groups.pop(name)
        kept = Group(name.lane, name.policy, OLDER, "")
        if kept not in self.groups:
            others = sum(item.version == OLDER and item.lane == name.lane for item in self.groups)
            if others >= self.policy.max_versions:
                kept = Group(name.lane, OTHER, OLDER, "")
        into = self.groups.get(kept)
        if into is None:
            into = self.groups[kept] = _Group(SliceTally(_key(kept), bool(self.policy.cluster)))
        into.whole.absorb(gone.whole)
        self.folded["version"] += gone.whole.total
        self._gone.update(tally.key.key for tally in gone.tallies())
        for sample in sorted(gone.samples):
            self._drop_sample(sample)

    def _slice(self, name: Group, group: _Group, attribute: str, value: str) -> SliceTally:
        values = group.values.setdefault(attribute, {})
        found = values.get(value)
        if found is None:
            if len(values) >= self.policy.max_values and value != OTHER:
                self.folded[attribute] += 1
                return self._slice(name, group, attribute, OTHER)
            key = _key(name, attribute, value)
            found = values[value] = SliceTally(key, bool(self.policy.cluster))
        return found

    # The review sample and its labels

    def _sample(self, seen: Observation, name: Group, cluster: int | None) -> None:
        cell = Cell(decision_of(seen.failure_class), seen.liked)
        draw = int(seen.id[:13], 16)
        if draw / _SPAN >= self.policy.review_shares.get(cell, 0.0) or seen.id in self._samples:
            return
        if len(self._samples) >= self.policy.max_samples and draw >= self._largest_draw():
            return
        sliced = {
            key: seen.attributes[key] for key in self.policy.slices or () if key in seen.attributes
        }
        record = SampledVerdict(
            id=seen.id,
            interaction_id=seen.interaction_id,
            slice=_key(name),
            attributes=sliced,
            decision=cell.decision,
            liked=cell.liked,
            cluster=cluster,
        )
        self._keep(record, name)
        self._new_samples.add(seen.id)
        if len(self._samples) > self.policy.max_samples:
            # The smallest draws stay: the same ones in any order.
            self._largest_draw()
            self._drop_sample(self._largest[0][1])

    def _largest_draw(self) -> int:
        """The largest draw that is kept; those of dropped samples leave the heap here."""
        while self._largest[0][1] not in self._samples:
            heapq.heappop(self._largest)
        return -self._largest[0][0]

    def _keep(self, record: SampledVerdict, name: Group) -> None:
        self._samples[record.id] = _Sample(record, name)
        if name in self.groups:
            self.groups[name].samples.add(record.id)
        self._by_interaction[record.interaction_id].append(record.id)
        heapq.heappush(self._largest, (-int(record.id[:13], 16), record.id))
        self._judge(record.interaction_id)

    def _drop_sample(self, verdict: str) -> None:
        sample = self._samples[verdict]
        self._count(sample, None)
        del self._samples[verdict]
        held = self._by_interaction[sample.record.interaction_id]
        held.remove(verdict)
        if not held:
            del self._by_interaction[sample.record.interaction_id]
        self._new_samples.discard(verdict)
        self._gone.add(sample.record.key)
        if sample.group in self.groups:
            self.groups[sample.group].samples.discard(verdict)

    def add_label(self, key: bytes, label: Label) -> None:
        """Take a person's decision. A later record of the key replaces it, as it does in the
        compacted topic, whoever it is of: keys of old labels name no reviewer."""
        if self._label_keys.get(key, label.interaction_id) != label.interaction_id:
            self.remove_label(key)
        self._labels[label.interaction_id][key] = label
        self._label_keys[key] = label.interaction_id
        self._judge(label.interaction_id)

    def remove_label(self, key: bytes) -> None:
        """A label was deleted from its topic."""
        interaction = self._label_keys.pop(key, None)
        if interaction is None:
            return
        del self._labels[interaction][key]
        if not self._labels[interaction]:
            del self._labels[interaction]
        self._judge(interaction)

    @property
    def unmatched(self) -> int:
        """Interactions with labels of which no verdict is in the review sample."""
        return sum(name not in self._by_interaction for name in self._labels)

    def _judge(self, interaction: str) -> None:
        """Settle what people say of an interaction's sampled verdicts."""
        labels = opinions(self._labels.get(interaction, {}))
        samples = self._by_interaction.get(interaction, [])
        for verdict in samples:
            said = [
                item.harmful
                for item in labels
                if item.verdict_id == verdict or (item.verdict_id is None and len(samples) == 1)
            ]
            yes, no = sum(said), len(said) - sum(said)
            # A tie says nothing.
            self._count(self._samples[verdict], None if yes == no else yes > no)

    def _count(self, sample: _Sample, truth: bool | None) -> None:
        if sample.truth is truth:
            return
        for sign, said in ((-1, sample.truth), (1, truth)):
            if said is None:
                continue
            for tally in self._tallies_of(sample):
                cell = Cell(sample.record.decision, sample.record.liked)
                tally.add_label(cell, said, sample.record.cluster, sign)
        sample.truth = truth

    def _tallies_of(self, sample: _Sample) -> Iterator[SliceTally]:
        group = self.groups.get(sample.group)
        if group is None:
            return
        yield group.whole
        for attribute, value in sample.record.attributes.items():
            values = group.values.get(attribute, {})
            found = values.get(value) or values.get(OTHER)
            if found is not None:
                yield found

    def shares(self, budget: float) -> dict[Cell, float]:
        """The split of the review budget that would narrow production's corrected rate most."""
        total: dict[Cell, Sampled] = {cell: Sampled() for cell in CELLS}
        for name, group in self.groups.items():
            if name.lane == "production":
                for cell, found in group.whole.cell_sizes().items():
                    total[cell].size += found.size
                    total[cell].labelled += found.labelled
                    total[cell].harmful += found.harmful
        return review_shares(total, budget)

    # Asking

    def tallies(self) -> Iterator[SliceTally]:
        """Every slice."""
        for group in self.groups.values():
            yield from group.tallies()

    def lane(self, lane: Lane) -> SliceTally | None:
        """All versions of all policies of a lane, without windows and labels; None before its
        first verdict."""
        groups = [group.whole for name, group in self.groups.items() if name.lane == lane]
        if not groups:
            return None
        policy = Policy(name=EVERY, version=EVERY)
        whole = SliceTally(RateSlice(lane=lane, policy=policy), bool(self.policy.cluster))
        for tally in groups:
            whole.absorb(tally)
        return whole

    def rates(self) -> list[Rates]:
        """Every slice as a record, in the order in which people read them."""
        self.fold_windows()
        return in_order(tally.record() for tally in self.tallies())

    def fold_windows(self) -> None:
        """Let go of windows that no alarm and no figure looks at any more."""
        for tally in self.tallies():
            tally.fold_windows()

    def versions(self, lane: Lane, policy: str) -> list[Group]:
        """Versions of a policy in the order of their first verdicts."""
        found = [
            name
            for name in self.groups
            if name.lane == lane and name.policy == policy and name.version != OLDER
        ]
        return sorted(found, key=lambda name: (self.groups[name].whole.first_ms, name))

    def previous(self, tally: SliceTally) -> SliceTally | None:
        """The same slice of the version that came before, where there is one."""
        key = tally.key
        own = Group(key.lane, key.policy.name, key.policy.version, key.reward)
        order = self.versions(key.lane, key.policy.name)
        if own not in order or (place := order.index(own)) == 0:
            return None
        before = self.groups[order[place - 1]]
        if not key.attribute:
            return before.whole
        return before.values.get(key.attribute, {}).get(key.value)

    def add_dead_letters(self, stamps_ms: Iterable[int]) -> None:
        """Count dead letters."""
        for stamp in stamps_ms:
            start = stamp // 1000 // WINDOW_SECONDS * WINDOW_SECONDS
            self.deadletters[start] = self.deadletters.get(start, 0) + 1

    # Writing and reading

    def changes(self, now: datetime, budget: float) -> list[tuple[bytes, Written | None]]:
        """Keys with their records since the last call, None for what is gone; the state last."""
        found: list[tuple[bytes, Written | None]] = []
        for tally in self.tallies():
            if tally.dirty:
                tally.fold_windows()
                record = tally.record()
                found.append((record.slice.key, record))
                tally.dirty = False
        for anchor in self.anchors.values():
            if anchor.dirty:
                found += anchor.changes()
        for verdict in sorted(self._new_samples):
            sample = self._samples[verdict].record
            found.append((sample.key, sample))
        self._new_samples.clear()
        written = {key for key, _ in found}
        found += [(key, None) for key in sorted(self._gone - written)]
        self._gone.clear()
        found.append((STATE_KEY, self._state(now, budget)))
        return found

    def _state(self, now: datetime, budget: float) -> MonitorState:
        return MonitorState(
            positions=tuple(
                Position(
                    topic=topic,
                    partition=partition,
                    offset=offset,
                    log=self.logs.get((topic, partition), ""),
                )
                for (topic, partition), offset in sorted(self.positions.items())
            ),
            records=len(list(self.tallies()))
            + len(self._samples)
            + sum(1 + len(anchor.windows) for anchor in self.anchors.values()),
            gaps=tuple(self.gaps),
            unreadable=dict(sorted(self.unreadable.items())),
            folded=dict(sorted(self.folded.items())),
            unmatched=self.unmatched,
            lanes={lane: instant(stamp) for lane, stamp in sorted(self.lanes.items())},
            deadletters=tuple(
                Window(start=start, total=count)
                for start, count in sorted(self.deadletters.items())
            ),
            watches={name: watch.record() for name, watch in sorted(self.watches.items())},
            updated_at=now,
            review_shares={
                cell_name(cell): round(share, 6) for cell, share in self.shares(budget).items()
            },
        )

    def restore(
        self,
        state: MonitorState,
        rates: Sequence[Rates],
        anchors: Sequence[AnchorFigures],
        answers: Sequence[AnchorAnswers],
        samples: Sequence[SampledVerdict],
    ) -> None:
        """Take up what an earlier life wrote. Labels are read anew from their own topic.

        Raises DecodeError where its records contradict each other; the ledger is then of no use.
        """
        by_set: dict[str, list[AnchorAnswers]] = defaultdict(list)
        for answer in answers:
            by_set[answer.set].append(answer)
        check_state(state, len(rates) + len(anchors) + len(answers) + len(samples))
        for rate in rates:
            check_rates(rate)
        for anchor in anchors:
            check_anchors(anchor, by_set[anchor.set])
        for sample in samples:
            check_sample(sample)
        wholes = {_group(rate.slice) for rate in rates if not rate.slice.attribute}
        if any(_group(rate.slice) not in wholes for rate in rates):
            raise DecodeError("of an attribute, and the whole is not there", field="slice")
        if by_set.keys() - {anchor.set for anchor in anchors}:
            raise DecodeError("of a set that has no figures", field="set")
        self.positions = {(item.topic, item.partition): item.offset for item in state.positions}
        self.logs = {(item.topic, item.partition): item.log for item in state.positions if item.log}
        self.gaps = list(state.gaps)
        self.unreadable = Counter(state.unreadable)
        self.folded = Counter(state.folded)
        self.lanes = {lane: round(time.timestamp() * 1000) for lane, time in state.lanes.items()}
        self.deadletters = {item.start: item.total for item in state.deadletters}
        self.watches = {
            name: WatchState.restored(name, item) for name, item in state.watches.items()
        }
        for record in sorted(rates, key=lambda item: item.slice.attribute != ""):
            key = record.slice
            name = _group(key)
            tally = SliceTally.restored(record)
            if not key.attribute:
                self.groups[name] = _Group(tally)
            elif name in self.groups:
                values = self.groups[name].values.setdefault(key.attribute, {})
                values[key.value] = tally
        self.anchors = {item.set: AnchorTally.restored(item, by_set[item.set]) for item in anchors}
        for sample in samples:
            self._keep(sample, _group(sample.slice))


def opinions(labels: Mapping[bytes, Label]) -> list[Label]:
    """Of labels by key, each reviewer's latest per verdict: a reviewer may have labelled under an
    old key, without their name, and under a new one."""
    latest: dict[tuple[str, str | None], tuple[datetime, bytes, Label]] = {}
    for key, label in labels.items():
        of = label.reviewer, label.verdict_id
        entry = label.decided_at, key, label
        if of not in latest or entry[:2] > latest[of][:2]:
            latest[of] = entry
    return [label for *_, label in latest.values()]


def in_order(rates: Iterable[Rates]) -> list[Rates]:
    """By lane and policy, versions as they came, the whole of each before its slices."""
    found = list(rates)
    begun: dict[Group, datetime] = {}
    for item in found:
        name = _group(item.slice)
        begun[name] = min(item.since, begun.get(name, item.since))

    def place(item: Rates) -> tuple[object, ...]:
        name = _group(item.slice)
        return name.lane, name.policy, begun[name], name, item.slice.attribute, item.slice.value

    return sorted(found, key=place)


def _group(key: RateSlice) -> Group:
    return Group(key.lane, key.policy.name, key.policy.version, key.reward)


def _key(name: Group, attribute: str = "", value: str = "") -> RateSlice:
    return RateSlice(
        lane=name.lane,
        policy=Policy(name=name.policy, version=name.version),
        reward=name.reward,
        attribute=attribute,
        value=value,
    )
