"""What is compared of a dead letter: all of it that its record and its reason determine. Pure.

Not compared are the service that wrote it, when, and from which lines of the program.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, replace
from typing import Final

from ares_stream.audit.leaves import content_hash
from ares_stream.streaming.deadletters import MAX_REASON, OURS, PREFIX, dead_letter, parted
from ares_stream.streaming.records import InboundRecord, OutboundRecord, Rejection

STAGE: Final = f"{PREFIX}stage"
KIND: Final = f"{PREFIX}exception.class.name"
REASON: Final = f"{PREFIX}exception.message"
_NOT_DETERMINED: Final = frozenset(
    {f"{PREFIX}class.name", f"{PREFIX}exception.stacktrace", f"{OURS}first_failed_at"}
)
_WORDS: Final = f"{OURS}why_not_whole"
_SUM: Final = f"{OURS}sha256_of"
_MEASURED: Final = frozenset(
    {_SUM, f"{OURS}sha256", f"{OURS}size", f"{OURS}original_timestamp", _WORDS}
)
"""What is said of a record that could not be read. An archive holds the record itself, of which
other bytes are summed up."""
_LIMIT: Final = re.compile(r"its dead letter would be larger than (\d{1,12}) bytes")


@dataclass(frozen=True, slots=True)
class Letter:
    """A dead letter: why, SHA-256 digests of its record's key, value and headers (None for null),
    and the other reasons that do not depend on who wrote it and when."""

    stage: str
    kind: str
    reason: str
    key: str | None = None
    value: str | None = None
    headers: str = ""
    said: dict[str, str] = field(default_factory=dict)

    @classmethod
    def of(cls, letter: InboundRecord | OutboundRecord) -> Letter:
        """From the record of the dead-letter topic."""
        theirs, reasons = parted(letter)
        texts = {name: (value or b"").decode(errors="replace") for name, value in reasons}
        return cls(
            texts.pop(STAGE, ""),
            texts.pop(KIND, ""),
            texts.pop(REASON, ""),
            _sha256(letter.key),
            _sha256(letter.value),
            content_hash(None, None, theirs, None).hex(),
            {name: text for name, text in texts.items() if name not in _NOT_DETERMINED},
        )

    def expected(self, record: InboundRecord, rejection: Rejection) -> Letter:
        """The letter that the scorer writes of a record and a refusal, where this one is recorded:
        how large a letter the topic took then, it says itself."""
        said = _LIMIT.fullmatch(self.said.get(_WORDS, ""))
        limit = None if said is None else int(said[1])
        made = dead_letter(record, rejection, "", service="", failed_at_ms=0, limit=limit)
        # What this process masks depends on which secrets it knows.
        reason = rejection.reason[:MAX_REASON].encode(errors="replace").decode()
        return replace(Letter.of(made), reason=reason)

    def pack(self) -> bytes:
        """As a payload."""
        return json.dumps(list(asdict(self).values())).encode()

    @classmethod
    def unpack(cls, payload: bytes) -> Letter:
        """Of a payload."""
        return cls(*json.loads(payload))


def differing(recorded: Letter, expected: Letter) -> Iterator[tuple[str, bool]]:
    """Each part in which two letters differ, and whether in words alone. Names no name that the
    replay has not, since a forger may have put a text there."""
    if recorded.stage != expected.stage:
        yield f"refused at {recorded.stage}, in the replay at {expected.stage}", False
        return
    for part in ("key", "value", "headers"):
        if getattr(recorded, part) != getattr(expected, part):
            yield f"its dead letter holds {_OTHER[part]}", False
    words = recorded.kind != expected.kind or recorded.reason != expected.reason
    before, after = recorded.said, expected.said
    summed = {before.get(_SUM), after.get(_SUM)}
    passed = _MEASURED if recorded.stage == "fetch" and len(summed) > 1 else {_WORDS}
    for name in after:
        if before.get(name) == after[name]:
            continue
        if name in passed and name in before:
            words = True
        else:
            yield f"its dead letter has another {name}", False
    if before.keys() - after.keys():
        yield "its dead letter has a reason that the replay has not", False
    if words:
        yield f"refused at {recorded.stage} in other words", True


_OTHER: Final = {"key": "another key", "value": "another value", "headers": "other headers"}


def _sha256(raw: bytes | None) -> str | None:
    return None if raw is None else hashlib.sha256(raw).hexdigest()
