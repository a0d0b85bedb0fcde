"""The notary as it is deployed: processes, a real broker, kills, replicas, a new key."""

from __future__ import annotations

import asyncio
import json
import os
import random
import time
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

import pytest
from aiokafka import TopicPartition
from aiokafka.admin import AIOKafkaAdminClient, RecordsToDelete

from ares_stream.audit.checking import erase_salts, verify_topics
from ares_stream.audit.leaves import Hasher, Leaf, unpack
from ares_stream.audit.notes import NoteKey, NoteSigner
from ares_stream.audit.ranges import TopicReader
from ares_stream.audit.tree import MerkleRange
from ares_stream.audit.verifying import Chain, check_chain, compare
from ares_stream.records import topics
from ares_stream.records.checkpoint import Checkpoint, NotaryState, Salt
from ares_stream.records.topics import specs, topic_name
from ares_stream.streaming.admin import create_topics
from ares_stream.streaming.compacted import read_latest
from ares_stream.streaming.connection import KafkaConnection
from ares_stream.streaming.journal import Journal
from ares_stream.streaming.publisher import Publisher
from ares_stream.streaming.reader import read, snapshot
from ares_stream.streaming.records import InboundRecord, OutboundRecord
from tests.support.service_process import SECONDS, NotaryProcess
from tests.support.sessions import make_anew

pytestmark = pytest.mark.kafka

ROOT: Final = Path(__file__).resolve().parents[2]
NAME: Final = "notary.example/ares"
LIVES: Final = int(os.environ.get("ARES_NOTARY_LIVES", "2"))
"""Each is half a minute, most of it the group's time-out; eight were survived, too."""
OUTPUTS: Final = (
    topics.VERDICTS,
    topics.REPAIR,
    topics.LABELS,
    topics.RELEASES,
    topics.DEADLETTERS,
)


async def create(bootstrap: str, prefix: str) -> KafkaConnection:
    connection = KafkaConnection(bootstrap=bootstrap)
    await create_topics(connection, specs(prefix, partitions=2, replication=1))
    return connection


async def write(connection: KafkaConnection, prefix: str, start: int, count: int) -> None:
    """Some transactions over all output topics, the last of each ten aborted or empty."""
    async with Journal(connection, f"{prefix}test") as journal:
        for number in range(start, start + count, 10):
            await journal.append(
                [
                    OutboundRecord(
                        topic_name(prefix, name), b"key-%d" % (k % 4),
                        None if k % 9 == 8 else b"text-%d" % k, (("h", b"%d" % k), ("n", b"")),
                    )
                    for k in range(number, number + 10)
                    for name in OUTPUTS
                ]
            )  # fmt: skip


async def content(connection: KafkaConnection, name: str) -> list[InboundRecord]:
    return [item async for item in read(connection, await snapshot(connection, [name]))]


async def signed(
    connection: KafkaConnection, prefix: str, keys: Sequence[NoteKey]
) -> dict[tuple[str, int], Chain]:
    """Every chain, checked: signatures, trees, one following the other."""
    by_place: dict[tuple[str, int], list[tuple[int, Checkpoint]]] = {}
    for record in await content(connection, topic_name(prefix, topics.CHECKPOINTS)):
        item = Checkpoint.decode(record.value or b"")
        by_place.setdefault((item.topic, item.partition), []).append((record.offset, item))
    return {
        place: check_chain(*place, items, name=NAME, keys=keys) for place, items in by_place.items()
    }


async def until_signed(
    connection: KafkaConnection, prefix: str, keys: Sequence[NoteKey], leaves: int
) -> dict[tuple[str, int], Chain]:
    deadline = time.monotonic() + SECONDS
    while True:
        chains = await signed(connection, prefix, keys)
        if sum(item.size for item in chains.values()) >= leaves:
            return chains
        assert time.monotonic() < deadline, {k: item.size for k, item in chains.items()}
        await asyncio.sleep(0.3)


async def check_everything(
    connection: KafkaConnection, prefix: str, chains: dict[tuple[str, int], Chain]
) -> int:
    """Each record of each topic is one leaf, and nothing else is; the number of records."""
    salts: dict[tuple[str, int], dict[int, Salt]] = {}
    for record in await content(connection, topic_name(prefix, topics.SALTS)):
        salt = Salt.decode(record.value or b"")
        known = salts.setdefault((salt.topic, salt.partition), {})
        assert salt.offset not in known, "a second salt for one record"
        known[salt.offset] = salt
    count = 0
    for name in OUTPUTS:
        records: dict[int, list[InboundRecord]] = {}
        for record in await content(connection, topic_name(prefix, name)):
            records.setdefault(record.partition, []).append(record)
        for partition, items in records.items():
            place = (topic_name(prefix, name), partition)
            done = compare(
                chains[place], items, salts=salts.get(place, {}), first=0, compacted=False
            )
            assert done.differences == []
            assert done.equal == len(items) == chains[place].size
            assert bool(salts.get(place)) == (name in (topics.REPAIR, topics.DEADLETTERS))
            count += len(items)
    return count


@pytest.mark.timeout(280)
async def test_each_record_is_one_leaf_through_kills_and_no_two_heads_contradict(
    kafka: str, prefix: str, tmp_path: Path
) -> None:
    """Lives killed anywhere, while records come; every head ever signed is consistent, those of
    aborted transactions, which any reader can see, as well."""
    connection = await create(kafka, prefix)
    signer = NoteSigner.generate(NAME)
    rng = random.Random(5)
    written = 0
    for _ in range(LIVES):
        with NotaryProcess(kafka, prefix, tmp_path, [signer]) as notary:
            await notary.said("leading")
            await write(connection, prefix, written, 40)
            written += 40
            await asyncio.sleep(rng.random() * 0.4)
            notary.kill()
    with NotaryProcess(kafka, prefix, tmp_path, [signer]) as notary:
        chains = await until_signed(connection, prefix, [signer.key], written * len(OUTPUTS))
        assert notary.stop() == 0
        assert "read again from there" not in notary.log_file.read_text()
    chains = await signed(connection, prefix, [signer.key])
    assert [item for chain in chains.values() for item in chain.differences] == []
    assert await check_everything(connection, prefix, chains) == written * len(OUTPUTS)
    ends: dict[tuple[str, int], list[Leaf]] = {}
    for place, chain in chains.items():
        ends[place] = [leaf for packed in chain.proven for leaf in unpack(packed)]
        offsets = [leaf.offset for leaf in ends[place]]
        assert offsets == sorted(set(offsets))


@pytest.mark.timeout(200)
async def test_a_key_is_exchanged_and_a_second_replica_takes_over(
    kafka: str, prefix: str, tmp_path: Path
) -> None:
    connection = await create(kafka, prefix)
    old, new = NoteSigner.generate(NAME), NoteSigner.generate(NAME)
    with NotaryProcess(kafka, prefix, tmp_path, [old]) as notary:
        await write(connection, prefix, 0, 10)
        await until_signed(connection, prefix, [old.key], 50)
        assert notary.stop() == 0
    # Its own topic, bent under each of its keys and under others: what stood there before counts.
    states = topic_name(prefix, topics.NOTARY)
    kept = await read_latest(connection, states)
    raw = next(iter(kept.values())).value or b""
    more = json.dumps(json.loads(raw) | {"size": 2**40 - 1}).encode()
    bent = [b"", b"{}", b"\xff\xfe", b'{"schema": "ares.notary-state/1"}', raw, more]
    async with Publisher(connection) as publisher:
        await publisher.publish(
            [
                OutboundRecord(states, key, value)
                for key in (*kept, b"k", b"")
                for value in bent
                if value != raw or key not in kept
            ]
        )
    with (
        NotaryProcess(kafka, prefix, tmp_path, [old, new]) as first,
        NotaryProcess(kafka, prefix, tmp_path, [old, new]) as second,
    ):
        await write(connection, prefix, 10, 10)
        await until_signed(connection, prefix, [old.key], 100)
        assert first.stop() == 0
        await second.said("leading")
        await write(connection, prefix, 20, 10)
        await until_signed(connection, prefix, [old.key], 150)
        assert second.stop() == 0
    chains = await signed(connection, prefix, [old.key])
    assert [item for chain in chains.values() for item in chain.differences] == []
    assert await check_everything(connection, prefix, chains) == 150
    only_new = await signed(connection, prefix, [new.key])
    kinds = {item.kind for chain in only_new.values() for item in chain.differences}
    assert kinds == {"forged"}, "heads of before the new key"


@pytest.mark.timeout(240)
async def test_a_state_that_continues_no_signed_head_is_never_signed_on(
    kafka: str, prefix: str, tmp_path: Path
) -> None:
    """A state of before, as from a backup, none at all, and one that is forged whole: each decodes,
    and a notary that took it up would sign a second tree under the name of the first."""
    connection = await create(kafka, prefix)
    signer = NoteSigner.generate(NAME)
    states = topic_name(prefix, topics.NOTARY)

    async def life(number: int, *, forgets: bool) -> dict[bytes, InboundRecord]:
        with NotaryProcess(kafka, prefix, tmp_path, [signer]) as notary:
            await notary.said("leading")
            await write(connection, prefix, 10 * number, 10)
            await until_signed(connection, prefix, [signer.key], 50 * (number + 1))
            assert notary.stop() == 0
            told = "continues no signed head" in notary.log_file.read_text()
            assert told == forgets
        return await read_latest(connection, states)

    async def put(values: Mapping[bytes, bytes | None]) -> None:
        async with Publisher(connection) as publisher:
            records = [OutboundRecord(states, key, value) for key, value in values.items()]
            await publisher.publish(records)

    early = await life(0, forgets=False)
    late = await life(1, forgets=False)
    await put({key: item.value for key, item in early.items()})
    await life(2, forgets=True)
    await put(dict.fromkeys(late))
    await life(3, forgets=True)
    forged = {}
    for key, item in late.items():
        state = NotaryState.decode(item.value or b"")
        leaf = Hasher(state.topic, state.partition).hash(Leaf(state.end, 0, 0, bytes(32), b""))
        tree = MerkleRange(state.size, map(bytes.fromhex, state.peaks))
        tree.append(leaf)
        peaks = tuple(peak.hex() for peak in tree.peaks)
        forged[key] = state.model_copy(update={"size": tree.size, "peaks": peaks}).encode()
    await put(forged)
    await life(4, forgets=True)
    await life(5, forgets=False)
    chains = await signed(connection, prefix, [signer.key])
    assert [item for chain in chains.values() for item in chain.differences] == []
    # Texts that were taken twice have two salts, of which the later one counts.
    assert sum(chain.size for chain in chains.values()) == 300


async def test_a_state_of_the_signed_tree_with_another_end_skips_and_repeats_no_record(
    kafka: str, prefix: str, tmp_path: Path
) -> None:
    """Its tree is the signed one, so that nothing but its offset tells that it was bent."""
    connection = await create(kafka, prefix)
    signer = NoteSigner.generate(NAME)
    states = topic_name(prefix, topics.NOTARY)
    with NotaryProcess(kafka, prefix, tmp_path, [signer]) as notary:
        await write(connection, prefix, 0, 10)
        await until_signed(connection, prefix, [signer.key], 50)
        assert notary.stop() == 0
    await write(connection, prefix, 10, 20)
    bent = []
    for number, item in enumerate((await read_latest(connection, states)).values()):
        state = NotaryState.decode(item.value or b"")
        end = state.end + 5 if number % 2 else max(0, state.end - 3)
        bent.append(
            OutboundRecord(states, state.key, state.model_copy(update={"end": end}).encode())
        )
    # A record behind the head whose text was erased before it is read again.
    repair = topic_name(prefix, topics.REPAIR)
    last = (await content(connection, repair))[-1]
    erasure = Salt(
        topic=repair, partition=last.partition, offset=last.offset,
        erased_at=datetime(2026, 10, 1, tzinfo=UTC), erased_by="ann",
    )  # fmt: skip
    bent.append(OutboundRecord(topic_name(prefix, topics.SALTS), erasure.key, erasure.encode()))
    async with Publisher(connection) as publisher:
        await publisher.publish(bent)
    with NotaryProcess(kafka, prefix, tmp_path, [signer]) as notary:
        chains = await until_signed(connection, prefix, [signer.key], 150)
        assert notary.stop() == 0
        assert "another offset than its signed head" in notary.log_file.read_text()
    assert [item for chain in chains.values() for item in chain.differences] == []
    names = [topic_name(prefix, name) for name in OUTPUTS]
    report = await verify_topics(TopicReader(connection), prefix, names, [signer.key], {})
    assert report.differences == []
    assert sum(part.equal for part in report.partitions) == 149
    assert sum(part.erased for part in report.partitions) == 1


@pytest.mark.timeout(240)
async def test_notaries_of_two_names_give_a_record_one_salt_and_an_erased_one_none(
    kafka: str, prefix: str, tmp_path: Path
) -> None:
    """Each reads from the beginning what the other one has signed: the second finds the first
    one's state, and the first, when it comes back, none."""
    connection = await create(kafka, prefix)
    first, second = NoteSigner.generate(NAME), NoteSigner.generate("other.example/ares")
    names = [topic_name(prefix, name) for name in OUTPUTS]
    states, salts = topic_name(prefix, topics.NOTARY), topic_name(prefix, topics.SALTS)

    async def found(own: NoteSigner, others: Sequence[NoteSigner]) -> tuple[int, int, int]:
        keys = [own.key, *(item.key for item in others)]
        report = await verify_topics(TopicReader(connection), prefix, names, keys, {})
        assert report.differences == []
        counts = [(part.equal, part.erased, part.later) for part in report.partitions]
        equal, erased, later = map(sum, zip(*counts, strict=True))
        return equal, erased, later

    async def life(signer: NoteSigner, size: int) -> None:
        group = f"{prefix}{signer.key.key_id.hex()}"
        with NotaryProcess(kafka, prefix, tmp_path, [signer], group=group) as notary:
            await notary.said("leading")
            deadline = time.monotonic() + SECONDS
            while (
                sum(await found(signer, [first, second])) < size
                or ((await found(signer, [first, second]))[2])
            ):
                assert time.monotonic() < deadline
                await asyncio.sleep(0.3)
            assert notary.stop() == 0

    await write(connection, prefix, 0, 20)
    await life(first, 100)
    drawn = {item.key or b"": item.value for item in await content(connection, salts)}
    assert len(drawn) == 40
    erased = await erase_salts(connection, prefix, "key-1", by="ann", reason="request-9")
    assert len(erased) == 10
    gone = {item.key for item in erased}
    assert await found(first, [second]) == (90, 10, 0)
    for number, (own, other) in enumerate([(second, first), (first, second)]):
        if own is first:
            known = await read_latest(connection, states)
            async with Publisher(connection) as publisher:
                await publisher.publish(
                    [OutboundRecord(states, key, None, partition=0) for key in known]
                )
        await write(connection, prefix, 20 + 10 * number, 10)
        written = 150 + 50 * number
        await life(own, written)
        assert await found(own, [other]) == (written - 10, 10, 0)
        # The other one's proofs hold of all that it had signed.
        signed_before = 100 if number == 0 else 150
        assert await found(other, [own]) == (signed_before - 10, 10, written - signed_before)
        now = await read_latest(connection, salts)
        assert {key: now[key].value for key in drawn if key not in gone} == {
            key: value for key, value in drawn.items() if key not in gone
        }
        assert all(b"erased_at" in (now[key].value or b"") for key in gone)


async def test_a_gap_that_was_signed_and_no_record_after_it_is_found_again_and_harms_nothing(
    kafka: str, prefix: str, tmp_path: Path
) -> None:
    connection = await create(kafka, prefix)
    signer = NoteSigner.generate(NAME)
    name = topic_name(prefix, topics.VERDICTS)

    async def publish(count: int) -> None:
        async with Publisher(connection) as publisher:
            await publisher.publish([OutboundRecord(name, b"k", b"%d" % k) for k in range(count)])

    await publish(5)
    (partition,) = {item.partition for item in await content(connection, name)}
    admin = AIOKafkaAdminClient(bootstrap_servers=kafka)
    await admin.start()
    try:
        await admin.delete_records({TopicPartition(name, partition): RecordsToDelete(5)})
    finally:
        await admin.close()
    checkpoints = topic_name(prefix, topics.CHECKPOINTS)
    with NotaryProcess(kafka, prefix, tmp_path, [signer]) as notary:
        async with asyncio.timeout(SECONDS):
            while not await content(connection, checkpoints):  # noqa: ASYNC110
                await asyncio.sleep(0.2)
        assert notary.stop() == 0
    await publish(7)
    with NotaryProcess(kafka, prefix, tmp_path, [signer]) as notary:
        chains = await until_signed(connection, prefix, [signer.key], 7)
        assert notary.stop() == 0
    chain = chains[name, partition]
    assert (chain.size, chain.differences) == (7, [])
    assert [(item.start, item.end) for item in chain.gaps] == [(0, 5)]


async def test_verify_names_the_offsets_of_a_checkpoints_topic_that_is_forged_whole(
    kafka: str, prefix: str, tmp_path: Path
) -> None:
    connection = await create(kafka, prefix)
    own, stranger = NoteSigner.generate(NAME), NoteSigner.generate(NAME)
    with NotaryProcess(kafka, prefix, tmp_path, [stranger]) as notary:
        await write(connection, prefix, 0, 10)
        await until_signed(connection, prefix, [stranger.key], 50)
        assert notary.stop() == 0
    checkpoints = topic_name(prefix, topics.CHECKPOINTS)
    raw = [item.value or b"" for item in await content(connection, checkpoints)]
    nowhere = json.dumps(json.loads(raw[0]) | {"partition": 99}).encode()
    async with Publisher(connection) as publisher:
        await publisher.publish([OutboundRecord(checkpoints, b"k", nowhere)])
    names = [topic_name(prefix, name) for name in OUTPUTS]
    report = await verify_topics(TopicReader(connection), prefix, names, [own.key], {})
    assert {item.kind for item in report.differences} == {"forged"}
    assert sum(part.unproven for part in report.partitions) == 50
    assert sum(part.equal + part.later for part in report.partitions) == 0
    signed_offsets = {(item.topic, item.partition, item.start) for item in report.differences}
    assert {
        (item.topic, item.partition, item.start) for item in map(Checkpoint.decode, raw)
    } <= signed_offsets
    assert any("99, a partition that is not there" in str(item) for item in report.strange)


async def test_a_release_is_signed_at_once(kafka: str, prefix: str, tmp_path: Path) -> None:
    connection = await create(kafka, prefix)
    signer = NoteSigner.generate(NAME)
    with NotaryProcess(kafka, prefix, tmp_path, [signer], checkpoint_seconds=3600) as notary:
        await notary.said("leading")
        async with Journal(connection, f"{prefix}test") as journal:
            await journal.append([OutboundRecord(f"{prefix}verdicts", b"k", b"v")])
            await asyncio.sleep(1)
            assert await signed(connection, prefix, [signer.key]) == {}
            await journal.append([OutboundRecord(f"{prefix}releases", b"m", b"v")])
        await until_signed(connection, prefix, [signer.key], 2)
        assert notary.stop() == 0


async def test_a_topic_made_anew_ends_the_notary_however_long_it_has_grown(
    kafka: str, prefix: str, tmp_path: Path
) -> None:
    connection = await create(kafka, prefix)
    name = topic_name(prefix, topics.VERDICTS)
    signer = NoteSigner.generate(NAME)

    async def publish(count: int) -> None:
        async with Publisher(connection) as publisher:
            await publisher.publish([OutboundRecord(name, b"k", b"%d" % k) for k in range(count)])

    await publish(5)
    with NotaryProcess(kafka, prefix, tmp_path, [signer]) as notary:
        await until_signed(connection, prefix, [signer.key], 5)
        assert notary.stop() == 0
    await make_anew(
        connection,
        [spec for spec in specs(prefix, partitions=2, replication=1) if spec.name == name],
    )
    await publish(50)
    with NotaryProcess(kafka, prefix, tmp_path, [signer]) as notary:
        assert await asyncio.to_thread(notary.process.wait, SECONDS) == 2
        last = notary.log_file.read_text().splitlines()[-1]
        assert f"{name}-" in last
        assert "give the notary another notary.name" in last
    chains = await signed(connection, prefix, [signer.key])
    assert sum(item.size for item in chains.values()) == 5
