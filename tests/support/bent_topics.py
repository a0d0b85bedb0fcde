"""Whole topics of bent records: real ones with other values, keys, headers, times, encodings and
sizes. The same records and seed give the same bent ones."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterator, Sequence
from typing import Final

from tests.support.bent_records import ODD, bend, places
from tests.support.mutations import flip, odd_headers
from tests.support.raw_batches import RawRecord, batch

YEAR_9999_MS: Final = 253_402_300_799_000
TIMES_MS: Final = (1_700_000_000_000, 1_700_000_000_000, 1_700_000_000_000, 0, -1, YEAR_9999_MS)
LARGE: Final = 900_000
WAYS: Final = ("another", "another", "another", "gone", "twice", "beside", "key")
NUMBERS: Final = (2**53 + 1, 2**53, 2**53 - 1, 2**63 - 1, 1e308, -0.0, 10**400, -1)
MORE: Final = (
    *ODD, "\ud83d", "\u202e\x07\x1b]0;x\x07", "é" * 500, "\u2028\u2029", "ares.verdict/2",
    "ares.label/99", "ares.unknown/1", "9999-12-31T23:59:59Z", "1970-01-01T00:00:00Z",
)  # fmt: skip


def _of_structure(raw: bytes, chance: random.Random) -> bytes:
    document = json.loads(raw)
    for _ in range(chance.randint(1, 3)):
        if found := list(places(document)):
            bend(document, chance.choice(found), chance.choice(WAYS), chance.choice(MORE))
    return json.dumps(document, ensure_ascii=chance.random() < 0.8).encode(errors="surrogatepass")


def _of_numbers(raw: bytes, chance: random.Random) -> bytes:
    """Every number of the record may be another."""
    document = json.loads(raw)
    found = list(places(document))
    numbers = [path for path in found if isinstance(_at(document, path), (int, float))]
    for path in chance.sample(numbers, min(len(numbers), chance.randint(1, 4))):
        bend(document, path, "another", chance.choice(NUMBERS))
    return json.dumps(document).encode()


def _at(document: object, path: Sequence[str | int]) -> object:
    for step in path:
        document = document[step]  # type: ignore[index]
    return document


def _cut(raw: bytes, chance: random.Random) -> bytes:
    return raw[: chance.randrange(len(raw) + 1)]


def _with_a_key_twice(raw: bytes, chance: random.Random) -> bytes:
    name = json.dumps(chance.choice(sorted(json.loads(raw)) or ["schema"])).encode()
    odd = json.dumps(chance.choice(MORE)).encode()
    if chance.random() < 0.5:
        return b"{" + name + b": " + odd + b", " + raw.lstrip()[1:]
    return raw.rstrip()[:-1] + b", " + name + b": " + odd + b"}"


def _deep(raw: bytes, chance: random.Random) -> bytes:
    depth = chance.choice((40, 1000, 20_000))
    deep = b"[" * depth + b"]" * depth
    return raw.rstrip()[:-1] + b', "deep": ' + deep + b"}"


def _large(raw: bytes, chance: random.Random) -> bytes:
    """A string of 900 KB in one place, or behind the last."""
    document = json.loads(raw)
    strings = [path for path in places(document) if isinstance(_at(document, path), str)]
    text = chance.choice(("x", "a b ", "\x00", "\u202e")) * LARGE
    if strings and chance.random() < 0.7:
        bend(document, chance.choice(strings), "another", text[: LARGE - len(raw)])
    else:
        document["large"] = text[: LARGE - len(raw)]
    return json.dumps(document, ensure_ascii=False).encode(errors="surrogatepass")[:LARGE]


def _literal(raw: bytes, chance: random.Random) -> bytes:
    return chance.choice(
        (b"", b" ", b"null", b"[]", b"{}", b"0", b'""', b"NaN", b"\xff\xfe\x00", b"\x00" * 50,
         b"{" * 500, raw + raw, b"\xef\xbb\xbf" + raw,
         raw.decode(errors="replace").encode("utf-16"))
    )  # fmt: skip


_CHANGES: Final[Sequence[tuple[Callable[[bytes, random.Random], bytes], int]]] = (
    (_of_structure, 40), (_of_numbers, 15), (_cut, 8), (flip, 8), (_with_a_key_twice, 10),
    (_deep, 3), (_literal, 10), (_large, 1),
)  # fmt: skip
KEYS: Final = (b"", b"k", b"\xff" * 9, b"x" * 300, b"chat", "\u202e".encode(), b"\x00")


def bent_record(real: RawRecord, chance: random.Random, *, keyed: bool = False) -> RawRecord:
    """One record that is nearly `real`; `keyed` always has a key."""
    value = real.value
    if value is None or chance.random() < 0.03:
        value = None
    else:
        changes, weights = zip(*_CHANGES, strict=True)
        [change] = chance.choices(changes, weights)
        value = change(value, chance)
    key = real.key if chance.random() < 0.7 else chance.choice((None, *KEYS))
    if keyed:
        key = key or b""
    headers = real.headers if chance.random() < 0.5 else odd_headers(chance)
    return RawRecord(key, value, headers)


def bent_batches(
    real: Sequence[RawRecord],
    count: int,
    chance: random.Random,
    *,
    size: int = 20,
    keyed: bool = False,
) -> Iterator[bytes]:
    """So many bent records in batches, each batch with a time of its own; large ones alone."""
    waiting: list[RawRecord] = []
    for _ in range(count):
        made = bent_record(chance.choice(real), chance, keyed=keyed)
        if len(made.value or b"") > LARGE // 20:
            yield batch([made], timestamp=chance.choice(TIMES_MS))
            continue
        waiting.append(made)
        if len(waiting) == size:
            yield batch(waiting, timestamp=chance.choice(TIMES_MS))
            waiting = []
    if waiting:
        yield batch(waiting, timestamp=chance.choice(TIMES_MS))
