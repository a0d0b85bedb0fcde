"""A notary without a broker: checkpoints and salts for records made by a test."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

from ares_stream.audit.leaves import Hasher, leaf_of, subject_hash
from ares_stream.audit.notes import NoteSigner
from ares_stream.audit.tree import MerkleRange
from ares_stream.records.checkpoint import Checkpoint, Salt
from ares_stream.services.notary import Grown
from ares_stream.streaming.records import InboundRecord

NAME = "notary.example/ares"
SIGNER = NoteSigner.generate(NAME)
NOON = datetime(2026, 10, 1, 12, tzinfo=UTC)


@dataclass
class Notarised:
    """One partition as it was signed."""

    records: list[InboundRecord]
    checkpoints: list[tuple[int, Checkpoint]]
    salts: dict[int, Salt]


def notarise(
    records: Sequence[InboundRecord],
    *,
    every: int = 10,
    salted: bool = False,
    keyed: bool = False,
    signers: Sequence[NoteSigner] = (SIGNER,),
    name: str = NAME,
) -> Notarised:
    """A checkpoint after each `every` records and at the end."""
    topic, partition = records[0].topic, records[0].partition
    grown = Grown(topic, partition, MerkleRange(), 0, 0, [])
    hasher = Hasher(topic, partition)
    made: list[tuple[int, Checkpoint]] = []
    salts: dict[int, Salt] = {}
    for number, record in enumerate(records, 1):
        salt = b"%016d" % record.offset if salted else None
        leaf = leaf_of(record, salt=salt, keyed=keyed)
        grown.tree.append(hasher.hash(leaf))
        grown.leaves.append(leaf.pack())
        grown.end = record.offset + 1
        if salt is not None:
            salts[record.offset] = Salt(
                topic=topic, partition=partition, offset=record.offset, salt=salt,
                subject=subject_hash(salt, record.key),
            )  # fmt: skip
        if number % every == 0 or number == len(records):
            made.append((len(made) * 2, grown.checkpoint(name, signers, NOON)))
            grown.signed()
    return Notarised(list(records), made, salts)


def records_of(count: int, *, topic: str = "ares.verdicts", step: int = 7) -> list[InboundRecord]:
    """Records whose offsets have the holes that markers of transactions leave."""
    return [
        InboundRecord(
            topic, 2, number + number // step, 1_790_000_000_000 + number * 1000,
            b"key-%d" % (number % 5), b"value-%d" % number, (("trace", b"%d" % number),),
        )
        for number in range(count)
    ]  # fmt: skip
