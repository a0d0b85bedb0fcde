"""What was recorded of one input record, beside what a replay makes of it. Pure.

identical   every output is the same byte for byte, with its key and headers
tolerated   numbers of the models differ within the tolerance, no decision does
divergent   another decision, another number, another reason for a dead letter
missing     the replay has an output that is not recorded
unexpected  an output is recorded that the replay has not, or one too many
left_out    the mapping leaves the record out, and nothing is recorded
pending     behind the last record that was settled when the replay began
"""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final, Literal

from ares_stream.audit.replay.letters import Letter, differing
from ares_stream.audit.replay.recorded import Carried, Output, Recorded, frame_of, unframed
from ares_stream.detection.assess import ScoredVerdict
from ares_stream.errors import DecodeError
from ares_stream.files.rows import parse_json
from ares_stream.records.cloudevents import event_type
from ares_stream.records.interaction import Interaction
from ares_stream.records.label import ReviewItem
from ares_stream.records.repair import CoupledFailure
from ares_stream.records.verdict import FailureClass
from ares_stream.scoring.handler import Outputs
from ares_stream.streaming.deadletters import batch_size
from ares_stream.streaming.records import (
    Headers,
    InboundRecord,
    OutboundRecord,
    Outcome,
    Rejection,
)

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
_FIELD: Final = re.compile(r"[a-z][a-z0-9_.]{0,63}")
_CLASSES: Final = frozenset(item.value for item in FailureClass)
_SIZE: Final = re.compile(r"its output of (\d+) bytes is larger")


@dataclass(frozen=True, slots=True)
class Comparison:
    """How one input record came out; `detail` names fields and numbers, never text. `expired`
    counts repair and review records that are not there and that retention may have deleted."""

    agreement: Agreement
    detail: str = ""
    expired: int = 0


IDENTICAL: Final = Comparison("identical")


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
    conversation: Callable[[], Interaction],
    expired: frozenset[Output] = frozenset(),
) -> Comparison:
    """Compare values, keys and headers. `found` is all that is recorded of the record; `expired`
    are the outputs of which retention may have deleted what belongs to this record;
    `conversation` gives that of the record, for one that people see as one of a sample."""
    if is_equal(found, outcome):
        return IDENTICAL
    settled = [item for item in found if item.output in (Output.VERDICT, Output.LETTER)]
    if len(settled) > 1:
        return Comparison("unexpected", f"settled {len(settled)} times: {_places(settled)}")
    if isinstance(outcome, Rejection):
        compared = _rejected(record, outcome, settled)
    elif not outcome:
        compared = Comparison("left_out")
        if found:
            return Comparison("unexpected", "the mapping leaves it out, and it has an output")
    elif not settled:
        return Comparison("missing", "neither verdict nor dead letter")
    elif settled[0].output is Output.LETTER:
        compared = _too_large(record, Letter.unpack(settled[0].payload), outcome)
    else:
        compared = _verdicts(settled[0], outcome[0], tolerance)
        if compared.agreement != "divergent":
            return _followed(compared, settled[0], outcome, found, outputs, expired, conversation)
    more = [item for item in found if item not in settled]
    if more and compared.agreement in ("identical", "tolerated"):
        return Comparison("unexpected", f"{_places(more)} of a record that was refused")
    return compared


def is_equal(found: Sequence[Recorded], outcome: Outcome) -> bool:
    """Whether there is one verdict and nothing else, here as there, and it is the same: so it is
    of nearly every record."""
    if len(found) != 1 or not isinstance(outcome, tuple) or len(outcome) != 1:
        return False
    (one,), (made,) = found, outcome
    return (
        one.output is Output.VERDICT
        and one.payload == made.value
        and one.frame == frame_of(made.key, made.headers)
    )


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
    return _letters(letter, letter.expected(record, rejection))


def _letters(recorded: Letter, expected: Letter) -> Comparison:
    words = ""
    for detail, is_near in differing(recorded, expected):
        if not is_near:
            return Comparison("divergent", detail)
        words = detail
    return Comparison("tolerated", words) if words else IDENTICAL


def _too_large(
    record: InboundRecord, letter: Letter, outcome: Sequence[OutboundRecord]
) -> Comparison:
    """A dead letter in the place of outputs: right where a topic would not have taken one."""
    if letter.stage != "publish":
        return Comparison("divergent", f"refused at {letter.stage}; in the replay it has a verdict")
    compared = _letters(
        letter, letter.expected(record, Rejection("publish", letter.kind, letter.reason))
    )
    if compared.agreement != "identical":
        return compared
    said = _SIZE.search(letter.reason)
    sizes = {batch_size(item) for item in outcome}
    if said is None or int(said[1]) in sizes:
        return Comparison("identical" if said else "tolerated", "its topic took no such output")
    return Comparison("divergent", "refused for the size of an output that the replay has not")


def _framed(recorded: Recorded, key: bytes | None, headers: Headers) -> Comparison | None:
    """Of an output with another key or another header than the replay's; None where both are the
    same. Names headers of the replay alone: a forger may have put a text into a name."""
    if recorded.frame == frame_of(key, headers):
        return None
    name = recorded.output.name.lower()
    their_key, theirs = unframed(recorded.frame)
    if their_key != key:
        return Comparison("divergent", f"its {name} record has another key")
    for header in headers:
        if header not in theirs:
            known = any(other == header[0] for other, _ in theirs)
            what = "another" if known else "no"
            return Comparison("divergent", f"its {name} record has {what} header {header[0]}")
    more = len(theirs) - len(headers)
    what = f"{more} headers that the replay has not" if more > 0 else "its headers in other order"
    return Comparison("divergent", f"its {name} record has {what}")


def _verdicts(recorded: Recorded, replayed: OutboundRecord, tolerance: Tolerance) -> Comparison:
    other = _framed(recorded, replayed.key, replayed.headers)
    if recorded.payload == replayed.value:
        return other or IDENTICAL
    try:
        before, after = parse_json(recorded.payload), parse_json(replayed.value or b"")
    except DecodeError:
        return Comparison("divergent", "the recorded verdict is not JSON")
    near: list[str] = []
    for path, was, now in _differences(before, after):
        if _is_near(path, was, now, tolerance):
            near.append(path)
        else:
            return Comparison("divergent", _told(path, was, now))
    return other or Comparison("tolerated", f"within the tolerance: {', '.join(near[:6])}")


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
    """The field, and values where they are scores or a class: others may hold a label's text, and
    so may whatever a forger wrote in the place of any of them, or as a field's name."""
    if now is _ABSENT:
        name = path if _FIELD.fullmatch(path) else "a field of another name"
        return f"{name}: not in the replay"
    if was is _ABSENT:
        return f"{path}: not in the recorded verdict"
    shown = path.startswith(_SCORES) or path == "failure_class"
    if shown and all(map(_is_plain, (was, now))):
        return f"{path}: {was} recorded, {now} replayed"
    return f"{path}: another value"


def _is_plain(value: Any) -> bool:
    return isinstance(value, int | float) or (isinstance(value, str) and value in _CLASSES)


def _followed(
    compared: Comparison,
    verdict: Recorded,
    outcome: Sequence[OutboundRecord],
    found: Sequence[Recorded],
    outputs: Outputs,
    expired: frozenset[Output],
    conversation: Callable[[], Interaction],
) -> Comparison:
    """The repair and review records that belong to a verdict."""
    if len(outcome) == len(found) == 1:
        return compared
    digest = hashlib.sha256(verdict.payload).hexdigest()
    gone = 0
    for output, topic, form in (
        (Output.REPAIR, outputs.repair, CoupledFailure),
        (Output.REVIEW, outputs.review, ReviewItem),
    ):
        name = output.name.lower()
        made = next((item for item in outcome[1:] if item.topic == topic), None)
        kept = [item for item in found if item.output is output]
        if len(kept) > 1:
            return Comparison("unexpected", f"{len(kept)} {name} records")
        if not kept:
            if made is not None and output not in expired:
                return Comparison("missing", f"no {name} record")
            gone += made is not None
            continue
        carried = Carried.unpack(kept[0].payload)
        if made is None and not (carried.sampled is True and not _is_anchor(outcome[0])):
            return Comparison("unexpected", f"a {name} record that the replay has not")
        if made is not None:
            _, expected = Carried.of(made.value or b"", form)
            headers = made.headers
        else:
            expected = replace(carried, interaction=_sha256_of(conversation()), whole=True)
            headers = _review_headers(outcome[0])
        wrong = _carried(name, replace(expected, verdict=digest), carried)
        wrong = wrong or _framed(kept[0], outcome[0].key, headers)
        if wrong is not None:
            return wrong
    return Comparison(compared.agreement, compared.detail, gone)


def _carried(name: str, expected: Carried, kept: Carried) -> Comparison | None:
    parts = {
        "verdict": "holds another verdict",
        "interaction": "holds another conversation",
        "cause": "names another cause",
        "share": "names another probability",
        "whole": "holds other fields than such a record has",
    }
    for part, what in parts.items():
        if getattr(expected, part) != getattr(kept, part):
            return Comparison("divergent", f"its {name} record {what}")
    return None


def _is_anchor(verdict: OutboundRecord) -> bool:
    """People have said what an anchor is, and none is for review."""
    note = verdict.note
    return isinstance(note, ScoredVerdict) and note.verdict.lane == "anchor"


def _review_headers(verdict: OutboundRecord) -> Headers:
    """The headers of a review record, beside those of its verdict: another type of event."""
    kind = event_type(ReviewItem).encode()
    return tuple((name, kind if name == "ce_type" else value) for name, value in verdict.headers)


def _sha256_of(conversation: Interaction) -> str:
    """Of a conversation, as `Carried` has it."""
    return hashlib.sha256(conversation.encode()).hexdigest()
