"""Interactions bent in every way that a record can be bent: bytes, structure, encodings, sizes,
headers, compression, batches. The same seed gives the same records.

    ARES_FUZZ_RECORDS=1000000 pytest tests/chaos/test_fuzz.py -s
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from ares_stream.detection.decide import DetectionPolicy
from ares_stream.errors import ScoringError
from ares_stream.records.decoding import DecodingLimits
from ares_stream.records.interaction import Interaction
from ares_stream.records.verdict import Harm, Reward
from ares_stream.scoring.handler import Input, Outputs, ScoringHandler
from ares_stream.scoring.panel import Scores
from tests.support.raw_batches import CODECS, RawRecord, batch, compressed

BATCH = 25

Document = dict[str, Any]
_ODD: tuple[Any, ...] = (
    None,
    True,
    -1,
    2**70,
    1e308,
    "",
    " ",
    "\0",
    "\u202e",
    "é" * 300,
    [],
    {},
    [[[[]]]],
    {"role": "user"},
    "1960-01-01T00:00:00Z",
    "9999-12-31T23:59:59Z",
    "0001-01-01T00:00:00+14:00",
)


def document(number: int) -> Document:
    """An interaction without a fault."""
    return {
        "schema": Interaction.SCHEMA,
        "id": f"fuzz-{number}",
        "occurred_at": "2026-01-01T00:00:00Z",
        "messages": [{"role": "user", "content": "how do I bake bread?"}],
        "response": "flour, water, salt and time",
        "policy": {"name": "p", "version": "1"},
        "attributes": {"tenant": "a"},
    }


def _places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    if path:
        yield path
    items: Sequence[tuple[Any, Any]] = ()
    if isinstance(value, dict):
        items = list(value.items())
    elif isinstance(value, list):
        items = list(enumerate(value))
    for key, inner in items:
        yield from _places(inner, (*path, key))


def _at(value: Any, path: tuple[Any, ...]) -> Any:
    for key in path:
        value = value[key]
    return value


def bend_structure(made: Document, chance: random.Random) -> Document:
    """One field replaced, removed, doubled, renamed or nested."""
    path = chance.choice(list(_places(made)))
    parent, key = _at(made, path[:-1]), path[-1]
    match chance.randrange(5):
        case 0:
            parent[key] = chance.choice(_ODD)
        case 1:
            del parent[key]
        case 2 if isinstance(parent, dict):
            parent[f"{key}_"] = parent[key]
        case 3:
            for _ in range(chance.choice((1, 31, 40))):
                parent[key] = [parent[key]]
        case _:
            parent[key] = str(parent[key]) * chance.choice((2, 50))
    return made


def flip(raw: bytes, chance: random.Random) -> bytes:
    bent = bytearray(raw)
    for _ in range(chance.randint(1, 4)):
        bent[chance.randrange(len(bent))] = chance.randrange(256)
    return bytes(bent)


def _cut(raw: bytes, chance: random.Random) -> bytes:
    return raw[: chance.randrange(len(raw))]


def _repeat(raw: bytes, chance: random.Random) -> bytes:
    return raw * chance.choice((2, 3))


def _insert(raw: bytes, chance: random.Random) -> bytes:
    at = chance.randrange(len(raw))
    odd = chance.choice((b"NaN", b"\xff\xfe", b"\\ud800", b"[" * 60, b"\0", b'"', b"1e999"))
    return raw[:at] + odd + raw[at:]


def _encode(raw: bytes, chance: random.Random) -> bytes:
    name = chance.choice(("utf-16", "utf-32", "utf-8-sig", "latin-1", "utf-7"))
    return raw.decode().encode(name, errors="replace")


def _grow(raw: bytes, chance: random.Random) -> bytes:
    return raw + b" " * chance.choice((1, 5_000, 70_000))


_BYTES: tuple[Callable[[bytes, random.Random], bytes], ...] = (
    flip,
    _cut,
    _repeat,
    _insert,
    _encode,
    _grow,
)


def bent_record(number: int, chance: random.Random) -> RawRecord:
    """One record: a quarter of them without a fault."""
    made = document(number)
    if chance.random() < 0.4:
        made = bend_structure(made, chance)
    value: bytes | None = json.dumps(made, ensure_ascii=chance.random() < 0.5).encode(
        errors="surrogatepass"
    )
    if chance.random() < 0.3:
        value = chance.choice(_BYTES)(value or b"", chance)
    elif chance.random() < 0.05:
        value = chance.choice((None, b"", b" ", b"null", b"[]", b"0"))
    key = chance.choice((b"k", b"k", None, b"", b"\xff" * 9))
    return RawRecord(key, value, odd_headers(chance))


def odd_headers(chance: random.Random) -> tuple[tuple[bytes, bytes | None], ...]:
    """Names that are no text, values that are null, many, large; most times none."""
    match chance.randrange(12):
        case 0:
            return ((b"\xff\xfe", b"x"),)
        case 1:
            return ((b"h", None), (b"", b""))
        case 2:
            return ((b"h", b"x" * 20_000),)
        case 3:
            return ((b"h", b"x"),) * 70
        case 4:
            return ((b"traceparent", b"00-" + b"a" * 32 + b"-" + b"b" * 16 + b"-01"),)
        case _:
            return ()


def bent_batch(records: Sequence[RawRecord], chance: random.Random, base: int = 0) -> bytes:
    """One batch of them: some with bytes behind their frame, or with bytes of it bent."""
    codec = chance.choice(CODECS)
    payload = compressed(codec, b"".join(r.encoded(n) for n, r in enumerate(records)))
    fault = chance.random()
    if fault < 0.05 and codec in ("gzip", "lz4", "zstd"):
        payload += b"trailing"
    elif fault < 0.1:
        payload = flip(payload, chance)
    elif fault < 0.12:
        payload = _cut(payload, chance)
    data = batch(records, codec, payload=payload, base=base)
    return _flip_behind(data, chance) if 0.12 < fault < 0.14 else data


def _flip_behind(data: bytes, chance: random.Random) -> bytes:
    """Bent where the checksum tells."""
    at = chance.randrange(61, len(data))
    return data[:at] + bytes((data[at] ^ 1,)) + data[at + 1 :]


class Flat:
    """A scorer that likes everything equally."""

    async def score(self, interactions: Sequence[Interaction]) -> list[Scores | ScoringError]:
        """The same scores for each."""
        return [self._scores for _ in interactions]

    _scores = Scores(
        harm=Harm(probability=0.1, judges={"judge": 0.1}),
        reward=Reward(score=0.0, quantile=0.5),
        releases={"judge": "0" * 64, "reward": "1" * 64},
    )


def handler(topic: str, prefix: str = "") -> ScoringHandler:
    """The scorer's handler of one topic, with those scores."""
    return ScoringHandler(
        Flat(),
        inputs=[Input(topic, "production")],
        outputs=Outputs(f"{prefix}verdicts", f"{prefix}repair", f"{prefix}review"),
        policy=DetectionPolicy(),
        limits=DecodingLimits(),
        review_sample=0.01,
    )
