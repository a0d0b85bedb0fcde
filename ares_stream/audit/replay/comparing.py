"""What was recorded of one input record, beside what a replay makes of it. Pure.

identical   every output is the same, a verdict byte for byte
tolerated   numbers of the models differ within the tolerance, no decision does
divergent   another decision, another number, another reason for a dead letter
missing     the replay has an output that is not recorded
unexpected  an output is recorded that the replay has not, or one too many
left_out    the mapping leaves the record out, and nothing is recorded
pending     behind the last record that was settled when the replay began
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal

from ares_stream.audit.replay.recorded import Carried, Letter, Output, Recorded, content_digest
from ares_stream.records.label import ReviewItem
from ares_stream.records.repair import CoupledFailure
from ares_stream.scoring.handler import Outputs
from ares_stream.streaming.deadletters import batch_size
from ares_stream.streaming.records import InboundRecord, OutboundRecord, Outcome, Rejection

Agreement = Literal[
    "identical", "tolerated", "divergent", "missing", "unexpected", "left_out", "pending"
]
AGREEMENTS: Final[tuple[Agreement, ...]] = (
    "identical", "tolerated", "divergent", "missing", "unexpected", "left_out", "pending",
)  # fmt: skip
FAULTS: Final[frozenset[Agreement]] = frozenset({"divergent", "missing", "unexpected"})

STEP: Final = 0.01
"""A reward's place among reference scores moves in steps: by as much, where the score is within
the tolerance."""
_SCORES: Final = ("harm.", "reward.")
_JOINED: Final = frozenset({"harm.coverage", "harm.domain", "reward.outlier"})
"""Fields that joined the verdict later: a scorer of before wrote none."""
_SIZE: Final = re.compile(r"its output of (\d+) bytes is larger")


@dataclass(frozen=True, slots=True)
class Comparison:
    """How one input record came out; `detail` names fields and numbers, never text. `expired`
    counts repair and review records that are not there and that retention may have deleted."""

    agreement: Agreement
    detail: str = ""
    expired: int = 0


@dataclass(frozen=True, slots=True)
class Tolerance:
    """By how much a number of the models may differ: absolutely, and as a share of its size where
    it is above 1. Zero asks for equal numbers."""

    share: float = 1e-4

    def allows(self, path: str, recorded: float, replayed: float) -> bool:
        """Whether the numbers count as equal."""
        if self.share and path.endswith(".quantile"):
            return abs(recorded - replayed) <= max(STEP, self.share)
        return abs(recorded - replayed) <= self.share * max(1.0, abs(recorded))


def compare(
    record: InboundRecord,
    outcome: Outcome,
    found: Sequence[Recorded],
    outputs: Outputs,
    tolerance: Tolerance,
    *,
    expired: frozenset[Output] = frozenset(),
) -> Comparison:
    """Compare. `found` is all that is recorded of the record; `expired` are the outputs of which
    retention may have deleted what belongs to this record."""
    settled = [item for item in found if item.output in (Output.VERDICT, Output.LETTER)]
    if len(settled) > 1:
        return Comparison("unexpected", f"settled {len(settled)} times: {_places(settled)}")
    if isinstance(outcome, Rejection):
        return _rejected(record, outcome, settled)
    if not outcome:
        if settled:
            return Comparison("unexpected", "the mapping leaves it out, and it has an output")
        return Comparison("left_out")
    if not settled:
        return Comparison("missing", "neither verdict nor dead letter")
    if settled[0].output is Output.LETTER:
        return _too_large(Letter.unpack(settled[0].payload), outcome)
    compared = _verdicts(settled[0].payload, outcome[0].value or b"", tolerance)
    if compared.agreement == "divergent":
        return compared
    return _followed(compared, settled[0].payload, outcome, found, outputs, expired)


def nothing_there(found: Sequence[Recorded]) -> Comparison:
    """Outputs name an offset where the topic holds no record. An archive holds none that could not
    be read when it was made."""
    if all(item.output is Output.LETTER for item in found) and {
        Letter.unpack(item.payload).stage for item in found
    } == {"fetch"}:
        return Comparison("tolerated", "could not be read then, and no record is there now")
    return Comparison(
        "unexpected",
        f"the topic holds no record at this offset (compacted, aborted or never written), and "
        f"{_places(found)} names it",
    )


def _places(found: Sequence[Recorded]) -> str:
    return ", ".join(
        f"{item.output.name.lower()} {item.partition}@{item.place}" for item in found[:4]
    )


def _rejected(
    record: InboundRecord, rejection: Rejection, settled: Sequence[Recorded]
) -> Comparison:
    if not settled:
        return Comparison("missing", f"no dead letter; it is refused at {rejection.stage}")
    if settled[0].output is Output.VERDICT:
        return Comparison("divergent", f"has a verdict; it is refused at {rejection.stage}")
    letter = Letter.unpack(settled[0].payload)
    if letter.stage != rejection.stage:
        return Comparison(
            "divergent", f"refused at {letter.stage}, in the replay at {rejection.stage}"
        )
    if record.damage is None and letter.content not in (
        None, content_digest(record.key, record.value)
    ):  # fmt: skip
        return Comparison("divergent", "its dead letter holds other bytes")
    if (letter.kind, letter.reason) != (rejection.kind, rejection.reason[: len(letter.reason)]):
        return Comparison("tolerated", f"refused at {letter.stage} in other words")
    return Comparison("identical")


def _too_large(letter: Letter, outcome: Sequence[OutboundRecord]) -> Comparison:
    """A dead letter in the place of outputs: right where a topic would not have taken one."""
    if letter.stage != "publish":
        return Comparison("divergent", f"refused at {letter.stage}; in the replay it has a verdict")
    said = _SIZE.search(letter.reason)
    sizes = {batch_size(item) for item in outcome}
    if said is None or int(said[1]) in sizes:
        return Comparison("identical" if said else "tolerated", "its topic took no such output")
    return Comparison("divergent", "refused for the size of an output that the replay has not")


def _verdicts(recorded: bytes, replayed: bytes, tolerance: Tolerance) -> Comparison:
    if recorded == replayed:
        return Comparison("identical")
    try:
        before, after = json.loads(recorded), json.loads(replayed)
    except ValueError:
        return Comparison("divergent", "the recorded verdict is not JSON")
    near: list[str] = []
    for path, was, now in _differences(before, after):
        if _is_near(path, was, now, tolerance):
            near.append(path)
        else:
            return Comparison("divergent", _told(path, was, now))
    return Comparison("tolerated", f"within the tolerance: {', '.join(near[:6])}")


_ABSENT: Final = object()


def _differences(was: Any, now: Any, path: str = "") -> Iterator[tuple[str, Any, Any]]:
    if isinstance(was, dict) and isinstance(now, dict):
        for name in sorted(was.keys() | now.keys()):
            inner = f"{path}.{name}" if path else name
            yield from _differences(was.get(name, _ABSENT), now.get(name, _ABSENT), inner)
    elif type(was) is not type(now) or was != now:
        yield path, was, now


def _is_near(path: str, was: Any, now: Any, tolerance: Tolerance) -> bool:
    if was is _ABSENT:
        return path in _JOINED
    if not path.startswith(_SCORES) or isinstance(was, bool) or isinstance(now, bool):
        return False
    if not isinstance(was, int | float) or not isinstance(now, int | float):
        return False
    return math.isfinite(was) and tolerance.allows(path, was, now)


def _told(path: str, was: Any, now: Any) -> str:
    """The field, and values where they are scores or a class: others may hold a label's text."""
    shown = path.startswith(_SCORES) or path == "failure_class"
    if now is _ABSENT:
        return f"{path}: not in the replay"
    if was is _ABSENT:
        return f"{path}: not in the recorded verdict"
    return f"{path}: {was} recorded, {now} replayed" if shown else f"{path}: another value"


def _followed(
    compared: Comparison,
    verdict: bytes,
    outcome: Sequence[OutboundRecord],
    found: Sequence[Recorded],
    outputs: Outputs,
    expired: frozenset[Output],
) -> Comparison:
    """The repair and review records that belong to a verdict."""
    if len(outcome) == len(found) == 1:
        return compared  # As nearly always: a verdict, and nothing after it.
    digest = hashlib.sha256(verdict).hexdigest()
    gone = 0
    for output, topic in ((Output.REPAIR, outputs.repair), (Output.REVIEW, outputs.review)):
        name = output.name.lower()
        made = [item for item in outcome[1:] if item.topic == topic]
        kept = [Carried.unpack(item.payload) for item in found if item.output is output]
        if len(kept) > 1:
            return Comparison("unexpected", f"{len(kept)} {name} records")
        if kept and kept[0].verdict != digest:
            return Comparison("divergent", f"its {name} record holds another verdict")
        if kept and not made and kept[0].sampled is not True:
            return Comparison("unexpected", f"a {name} record that the replay has not")
        if made and not kept:
            if output not in expired:
                return Comparison("missing", f"no {name} record")
            gone += 1
        if made and kept and kept[0].interaction != _carried(output, made[0]).interaction:
            return Comparison("divergent", f"its {name} record holds another conversation")
    return Comparison(compared.agreement, compared.detail, gone)


def _carried(output: Output, made: OutboundRecord) -> Carried:
    form = CoupledFailure if output is Output.REPAIR else ReviewItem
    return Carried.of(form.decode(made.value or b""))
