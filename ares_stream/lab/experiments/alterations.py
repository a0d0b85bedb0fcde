"""Random alterations of notarised topics: is each found, and located, and nothing else?"""

from __future__ import annotations

import json
import random
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any, Final

from ares_stream.audit.leaves import Hasher, leaf_of, subject_hash
from ares_stream.audit.notes import NoteSigner, TreeHead, open_note
from ares_stream.audit.proofs import SCHEMA, prove
from ares_stream.audit.tree import MerkleRange
from ares_stream.audit.verifying import Difference, check_chain, compare
from ares_stream.records.checkpoint import Checkpoint, Salt
from ares_stream.services.notary import Grown
from ares_stream.streaming.records import InboundRecord

NAME: Final = "bench.example/ares"
KINDS: Final = ("changed", "dropped", "inserted", "reordered", "truncated", "forged checkpoint")
NOON: Final = datetime(2026, 10, 1, 12, tzinfo=UTC)
NOON_MS: Final = int(NOON.timestamp() * 1000)


@dataclass(frozen=True)
class Signed:
    """One partition as it was signed, and the heads that an auditor kept."""

    records: list[InboundRecord]
    checkpoints: list[Checkpoint]
    salts: dict[int, Salt]
    heads: list[TreeHead]


def sign(records: Sequence[InboundRecord], signer: NoteSigner, every: int, salted: bool) -> Signed:
    """A checkpoint after every so many records and at the end."""
    grown = Grown(records[0].topic, records[0].partition, MerkleRange(), 0, 0, [])
    hasher = Hasher(grown.topic, grown.partition)
    checkpoints, salts = [], {}
    for number, record in enumerate(records, 1):
        salt = b"%016d" % record.offset if salted else None
        leaf = leaf_of(record, salt=salt, keyed=False)
        grown.tree.append(hasher.hash(leaf))
        grown.leaves.append(leaf.pack())
        grown.end = record.offset + 1
        if salt is not None:
            salts[record.offset] = Salt(
                topic=grown.topic, partition=grown.partition, offset=record.offset, salt=salt,
                subject=subject_hash(salt, record.key),
            )  # fmt: skip
        if number % every == 0 or number == len(records):
            checkpoints.append(grown.checkpoint(NAME, [signer], NOON))
            grown.signed()
    heads = [TreeHead.parse(open_note(item.note, [signer.key])[0]) for item in checkpoints]
    return Signed(list(records), checkpoints, salts, heads)


def stream(rng: random.Random, count: int, topic: str) -> list[InboundRecord]:
    """Records of the size of verdicts, with the holes that markers of transactions leave."""
    offset, found = 0, []
    for _ in range(count):
        offset += 1 + (rng.random() < 0.05)
        found.append(
            InboundRecord(
                topic, 0, offset, NOON_MS + offset, rng.randbytes(12), rng.randbytes(900),
                (("ce_type", rng.randbytes(8)),),
            )
        )  # fmt: skip
    return found


def alter(
    rng: random.Random, signed: Signed, kind: str
) -> tuple[list[InboundRecord], list[Checkpoint], set[int]]:
    """Records and checkpoints after one alteration, and the offsets where it must be found."""
    records, checkpoints = list(signed.records), list(signed.checkpoints)
    place = rng.randrange(len(records))
    record = records[place]
    if kind == "changed":
        records[place] = _changed(rng, record)
        return records, checkpoints, {record.offset}
    if kind == "dropped":
        return records[:place] + records[place + 1 :], checkpoints, {record.offset}
    if kind == "inserted":
        taken = {item.offset for item in records}
        offset = rng.choice([n for n in range(records[-1].offset) if n not in taken])
        at = sum(item.offset < offset for item in records)
        new = replace(rng.choice(records), offset=offset)
        return [*records[:at], new, *records[at:]], checkpoints, {offset}
    if kind == "reordered":
        other = rng.choice([n for n in range(len(records)) if n != place])
        a, b = records[place], records[other]
        records[place] = replace(b, offset=a.offset)
        records[other] = replace(a, offset=b.offset)
        return records, checkpoints, {a.offset, b.offset}
    if kind == "truncated":
        cut = rng.randrange(1, len(records))
        if rng.random() < 0.5:
            kept = checkpoints[: rng.randrange(1, len(checkpoints))]
            return records, kept, {kept[-1].end}
        return records[:cut], checkpoints, {item.offset for item in records[cut:]}
    number = rng.randrange(len(checkpoints))
    checkpoints[number] = _forged(rng, checkpoints[number])
    return records, checkpoints, {checkpoints[number].start}


def _changed(rng: random.Random, record: InboundRecord) -> InboundRecord:
    value = bytearray(record.value or b"")
    value[rng.randrange(len(value))] ^= 1 << rng.randrange(8)
    choices: list[dict[str, Any]] = [
        {"value": bytes(value)},
        {"value": None},
        {"key": None},
        {"key": (record.key or b"") + b"x"},
        {"headers": ()},
        {"headers": (("ce_type", None),)},
        {"timestamp_ms": record.timestamp_ms + rng.choice((-1, 1))},
    ]
    return replace(record, **rng.choice(choices))


def _forged(rng: random.Random, item: Checkpoint) -> Checkpoint:
    """By one without the notary's key."""
    leaves = bytearray(item.leaves)
    leaves[rng.randrange(len(leaves))] ^= 1 << rng.randrange(8)
    lines = item.note.split("\n")
    other = NoteSigner.generate(NAME)
    head = TreeHead(lines[0], item.size, rng.randbytes(32))
    choices: list[dict[str, Any]] = [
        {"leaves": bytes(leaves)},
        {"leaves": item.leaves[49:]},
        {"note": item.note.replace(lines[2], "A" * 43 + "=")},
        {"note": head.text() + "\n" + other.sign(head.text())},
        {"note": "\n".join([lines[0], str(item.size + 1), *lines[2:]])},
        {"size": item.size + 1},
    ]
    return item.model_copy(update=rng.choice(choices))


def differences(
    signed: Signed,
    records: list[InboundRecord],
    checkpoints: list[Checkpoint],
    signer: NoteSigner,
    heads: Sequence[TreeHead],
) -> list[Difference]:
    """What verification finds."""
    first = signed.records[0]
    chain = check_chain(
        first.topic, first.partition, enumerate(checkpoints),
        name=NAME, keys=[signer.key], known=heads,
    )  # fmt: skip
    done = compare(chain, records, salts=signed.salts, first=0, compacted=False)
    return [*chain.differences, *done.differences]


def bench(
    *, alterations: int, count: int, seed: int, progress: Callable[[], None] = lambda: None
) -> dict[str, Any]:
    """Alter, verify, compare; then leaves a second on this core, and the size of proofs."""
    rng = random.Random(seed)
    signer = NoteSigner.generate(NAME)
    sets = [
        sign(stream(rng, count, "ares.verdicts"), signer, 64, False),
        sign(stream(rng, count, "ares.repair"), signer, 64, True),
    ]
    asked: Counter[str] = Counter()
    found: Counter[str] = Counter()
    false_alarms = 0
    for number in range(alterations):
        kind, signed = KINDS[number % len(KINDS)], sets[number // len(KINDS) % 2]
        records, checkpoints, where = alter(rng, signed, kind)
        told = differences(signed, records, checkpoints, signer, signed.heads[-1:])
        asked[kind] += 1
        found[kind] += where <= {item.start for item in told}
        # A head that was kept is missed as well where its checkpoint is the forged one.
        false_alarms += sum(
            item.start not in where and item.kind != "unknown_head" for item in told
        )
        progress()
    for signed in sets:
        quiet = differences(signed, signed.records, signed.checkpoints, signer, signed.heads)
        false_alarms += len(quiet)
    return {
        "schema": "ares.bench-audit/1",
        "seed": seed,
        "records": count,
        "alterations": {kind: {"made": asked[kind], "located": found[kind]} for kind in asked},
        "made": sum(asked.values()),
        "located": sum(found.values()),
        "false_alarms": false_alarms,
        "leaves_per_second": _speed(sets[0].records),
        "proof": _proof_size(sets[0]),
        "stored_bytes_per_leaf": round(
            sum(len(item.encode()) for item in sets[0].checkpoints) / count, 1
        ),
    }


def _speed(records: Sequence[InboundRecord]) -> dict[str, int]:
    """Leaves a second of one core: growing a tree, and verifying it against the records."""
    repeats = max(1, 20_000 // len(records))
    speeds = {}
    hasher = Hasher(records[0].topic, 0)
    began = time.process_time()
    for _ in range(repeats):
        tree = MerkleRange()
        for record in records:
            tree.append(hasher.hash(leaf_of(record, salt=None, keyed=False)))
    speeds["grow"] = round(repeats * len(records) / (time.process_time() - began))
    signer = NoteSigner.generate(NAME)
    signed = sign(records, signer, 1024, False)
    began = time.process_time()
    for _ in range(repeats):
        differences(signed, signed.records, signed.checkpoints, signer, ())
    speeds["verify"] = round(repeats * len(records) / (time.process_time() - began))
    return speeds


def _proof_size(signed: Signed) -> dict[str, int]:
    """Bytes of one proof, with and without the record that it shows."""
    record = signed.records[len(signed.records) // 3]
    proof = prove(record.offset, signed.checkpoints, record=record, salt=None)
    whole = len(json.dumps({"schema": SCHEMA, "proofs": [proof]}))
    alone = len(json.dumps({"schema": SCHEMA, "proofs": [proof | {"record": None}]}))
    return {"bytes": whole, "bytes_without_record": alone, "leaves": len(signed.records)}
