"""What other judges, reward models and detection policies would have said. Pure."""

from __future__ import annotations

from ares_stream.audit.replay.spec import MAX_VALUES, Cell
from ares_stream.detection.decide import DetectionPolicy, decide
from ares_stream.errors import DecodeError
from ares_stream.records.verdict import Verdict
from ares_stream.streaming.records import Outcome

OTHER = "(other values)"


class Changes:
    """Counts, by slice, what verdicts were and what they would be."""

    def __init__(self, slices: tuple[str, ...]) -> None:
        self._slices = slices
        self._values: dict[str, set[str]] = {}
        self.cells: dict[str, Cell] = {}
        self.moves: dict[str, int] = {}

    def take(self, before: Verdict, after: str) -> bool:
        """One verdict with the class that it would have; whether that is another one."""
        was = before.failure_class.value
        for name in self._names(before):
            cell = self.cells.setdefault(name, Cell())
            cell.before[was] = cell.before.get(was, 0) + 1
            cell.after[after] = cell.after.get(after, 0) + 1
            cell.changed += was != after
        if was != after:
            move = f"{was} → {after}"
            self.moves[move] = self.moves.get(move, 0) + 1
        return was != after

    def _names(self, verdict: Verdict) -> list[str]:
        names = [f"lane {verdict.lane}", f"policy {verdict.policy.name} {verdict.policy.version}"]
        for attribute in self._slices:
            value = verdict.attributes.get(attribute)
            if value is None:
                continue
            known = self._values.setdefault(attribute, set())
            if value not in known and len(known) >= MAX_VALUES:
                value = OTHER
            known.add(value)
            names.append(f"{attribute} {value}")
        return names


def class_decided(verdict: Verdict, policy: DetectionPolicy) -> str:
    """The class that the recorded scores have under another policy."""
    return decide(verdict.harm, verdict.reward, policy).failure_class.value


def class_made(outcome: Outcome) -> str | None:
    """The class of a replayed record; None where it has no verdict."""
    if not isinstance(outcome, tuple) or not outcome:
        return None
    try:
        return Verdict.decode(outcome[0].value or b"").failure_class.value
    except DecodeError:
        return None
