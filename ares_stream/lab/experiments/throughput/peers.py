"""The scorer's work as other frameworks advise to write it. Stands alone: it runs in an
environment of its own (benchmarks/requirements-peers.txt) and imports nothing of the package.

    python peers.py NAME SETTINGS.json

Each peer reads interactions, tokenises once for both models, runs them, and writes a verdict with
the fields of ours; harmful answers that are liked go to the repair topic with their text.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import math
import os
import sys
from bisect import bisect_right
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

BATCH = 256
"""Records that are scored together and committed in one transaction."""
RUN_TOKENS = 256
"""Of one model run: on a CPU more leaves the cache."""
PADDING = 0.08

Read = tuple[Any, Any, Any, int, Any]
"""Topic, partition, offset, timestamp and value."""
Scored = tuple[bytes, bytes, bool]
"""Key, verdict, and whether the record goes to the repair topic."""


class Scoring:
    """Tokenizer and both models, by hand."""

    def __init__(self, settings: dict[str, Any]) -> None:
        import onnxruntime
        from tokenizers import Tokenizer

        self._tokenizer = Tokenizer.from_file(settings["tokenizer"])
        self._tokenizer.enable_truncation(settings["max_length"])
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        self._sessions = [
            onnxruntime.InferenceSession(
                settings[model], sess_options=options, providers=["CPUExecutionProvider"]
            )
            for model in ("judge", "reward")
        ]
        self._inputs = [[item.name for item in session.get_inputs()] for session in self._sessions]
        self._intercept = settings["intercept"]
        self._reference = settings["reference"]
        self._releases = settings["releases"]
        self._threads = ThreadPoolExecutor(settings["threads"])

    def score(self, records: Sequence[Read]) -> list[Scored]:
        """Each with both models; verdicts in order."""
        rows = [json.loads(record[4]) for record in records]
        texts = [(_prompt(row), row["response"]) for row in rows]
        encoded = self._tokenizer.encode_batch_fast(texts)
        order = sorted(range(len(rows)), key=lambda row: -len(encoded[row]))
        jobs = [
            (model, batch)
            for batch in _runs(order, [len(item) for item in encoded])
            for model in range(2)
        ]
        outputs = [[0.0] * len(rows), [0.0] * len(rows)]

        def run(job: tuple[int, list[int]]) -> None:
            model, batch = job
            feed = self._feed(model, [encoded[row] for row in batch])
            logits = self._sessions[model].run(["logits"], feed)[0]
            for row, value in zip(batch, logits[:, 0].tolist(), strict=True):
                outputs[model][row] = value

        list(self._threads.map(run, jobs))
        return [
            self._verdict(record, row, harm, reward)
            for record, row, harm, reward in zip(records, rows, *outputs, strict=True)
        ]

    def _feed(self, model: int, batch: Sequence[Any]) -> dict[str, Any]:
        import numpy

        shape = (len(batch), max(len(item) for item in batch))
        feed = {name: numpy.zeros(shape, numpy.int64) for name in self._inputs[model]}
        for row, item in enumerate(batch):
            for name, values in (
                ("input_ids", item.ids),
                ("attention_mask", item.attention_mask),
                ("token_type_ids", item.type_ids),
            ):
                if name in feed:
                    feed[name][row, : len(values)] = values
        return feed

    def _verdict(
        self,
        record: Read,
        row: dict[str, Any],
        harm: float,
        reward: float,
    ) -> Scored:
        topic, partition, offset, timestamp, _ = record
        probability = 1 / (1 + math.exp(-(harm + self._intercept)))
        quantile = bisect_right(self._reference, reward) / len(self._reference)
        harmful, liked = probability >= 0.5, quantile >= 0.5
        known = [topic, partition, offset, self._releases]
        verdict = {
            "schema": "ares.verdict/1",
            "id": hashlib.sha256(json.dumps(known).encode()).hexdigest()[:32],
            "interaction_id": row["id"],
            "lane": "production",
            "source": {
                "topic": topic,
                "partition": partition,
                "offset": offset,
                "timestamp_ms": timestamp,
            },
            "occurred_at": row["occurred_at"],
            "policy": row["policy"],
            "attributes": row.get("attributes", {}),
            "harm": {
                "probability": probability,
                "judges": {"judge": probability},
                "disagreement": 0.0,
            },
            "reward": {"score": reward, "quantile": quantile},
            "scored_high": {"above_quantile": liked},
            "failure_class": "coupled_failure" if harmful and liked else "clean",
            "reasons": ["harm_above_threshold" if harmful else "harm_below_threshold"],
            "releases": self._releases,
        }
        value = json.dumps(verdict, separators=(",", ":")).encode()
        return row["id"].encode(), value, harmful and liked


def _prompt(row: dict[str, Any]) -> str:
    turns = row["messages"]
    return str(next((t for t in reversed(turns) if t["role"] != "assistant"), turns[-1])["content"])


def _runs(order: Sequence[int], lengths: Sequence[int]) -> Iterable[list[int]]:
    """Neighbours in length together, as long as little of a run pads."""
    batch: list[int] = []
    for row in order:
        if batch:
            padded = (len(batch) + 1) * lengths[batch[0]]
            used = sum(lengths[item] for item in batch) + lengths[row]
            if padded > RUN_TOKENS or padded - used > PADDING * padded or len(batch) == 32:
                yield batch
                batch = []
        batch.append(row)
    if batch:
        yield batch


def confluent(settings: dict[str, Any]) -> None:
    """Exactly once by hand: consume, score, produce and commit in one transaction (KIP-447)."""
    from confluent_kafka import Consumer, Producer

    scoring = Scoring(settings)
    consumer = Consumer(
        {
            "bootstrap.servers": settings["bootstrap"],
            "group.id": settings["group"],
            "auto.offset.reset": "earliest",
            "enable.auto.commit": False,
            "isolation.level": "read_committed",
        }
    )
    producer = Producer(
        {
            "bootstrap.servers": settings["bootstrap"],
            "transactional.id": f"{settings['group']}.{settings['member']}",
            "linger.ms": 5,
        }
    )
    producer.init_transactions()
    consumer.subscribe([settings["input"]])
    while True:
        # Up to the commit interval: what has come by then is a batch.
        messages = consumer.consume(BATCH, timeout=settings["linger"])
        read = [item for item in messages if item.error() is None]
        if not read:
            continue
        producer.begin_transaction()
        records = [
            (m.topic(), m.partition(), m.offset(), m.timestamp()[1], m.value()) for m in read
        ]
        for (key, value, failed), message in zip(scoring.score(records), read, strict=True):
            producer.produce(settings["verdicts"], value, key)
            if failed:
                producer.produce(settings["repair"], message.value(), key)
        producer.poll(0)
        producer.send_offsets_to_transaction(
            consumer.position(consumer.assignment()), consumer.consumer_group_metadata()
        )
        producer.commit_transaction()


def faststream(settings: dict[str, Any]) -> None:
    """At least once: batches of a subscriber, acknowledged once their verdicts are published."""
    import asyncio

    from confluent_kafka import Message
    from faststream import AckPolicy, FastStream
    from faststream.confluent import KafkaBroker, KafkaMessage

    scoring = Scoring(settings)
    broker = KafkaBroker(settings["bootstrap"], acks="all")
    app = FastStream(broker)

    async def undecoded(message: KafkaMessage) -> Any:
        return message.body

    @broker.subscriber(  # type: ignore[untyped-decorator, unused-ignore]
        settings["input"],
        batch=True,
        max_records=BATCH,
        group_id=settings["group"],
        auto_offset_reset="earliest",
        ack_policy=AckPolicy.NACK_ON_ERROR,
        polling_interval=settings["linger"],
        decoder=undecoded,
    )
    async def handle(values: list[bytes], message: KafkaMessage) -> None:
        raw: tuple[Message, ...] = message.raw_message  # type: ignore[assignment, unused-ignore]
        records = [(m.topic(), m.partition(), m.offset(), m.timestamp()[1], m.value()) for m in raw]
        scored = await asyncio.to_thread(scoring.score, records)
        sent: list[Any] = []
        for (key, value, failed), m in zip(scored, raw, strict=True):
            sent.append(await broker.publish(value, settings["verdicts"], key=key, no_confirm=True))
            if failed:
                repair = settings["repair"]
                sent.append(await broker.publish(m.value(), repair, key=key, no_confirm=True))
        await asyncio.gather(*sent)

    asyncio.run(app.run())


def quix(settings: dict[str, Any]) -> None:
    """Exactly once: a streaming data frame, one row at a time."""
    from quixstreams import Application

    scoring = Scoring(settings)
    application = Application(
        broker_address=settings["bootstrap"],
        consumer_group=settings["group"],
        auto_offset_reset="earliest",
        processing_guarantee="exactly-once",
        commit_interval=settings["linger"],
        commit_every=BATCH,
        auto_create_topics=False,
        loglevel="WARNING",
    )
    source = application.topic(settings["input"], value_deserializer="bytes")
    verdicts = application.topic(settings["verdicts"], value_serializer="bytes")
    repair = application.topic(settings["repair"], value_serializer="bytes")

    def score(value: bytes, _key: Any, timestamp: int, _headers: Any) -> tuple[bytes, bytes, bool]:
        from quixstreams import message_context

        context = message_context()
        record = (context.topic, context.partition, context.offset, timestamp, value)
        return scoring.score([record])[0]

    frame = application.dataframe(source)
    scored = frame.apply(score, metadata=True)
    scored.apply(lambda item: item[1]).to_topic(verdicts)
    scored[scored.apply(lambda item: item[2])].apply(lambda item: item[1]).to_topic(repair)
    application.run()


def bytewax(settings: dict[str, Any]) -> None:
    """At least once: batches of a source, with recovery."""
    from datetime import timedelta

    import bytewax.operators as op
    from bytewax.connectors.kafka import KafkaSinkMessage
    from bytewax.connectors.kafka import operators as kop
    from bytewax.dataflow import Dataflow
    from bytewax.recovery import RecoveryConfig, init_db_dir
    from bytewax.testing import cluster_main

    scoring = Scoring(settings)
    flow = Dataflow("scorer")
    source = kop.input(
        "read", flow, brokers=[settings["bootstrap"]], topics=[settings["input"]], batch_size=BATCH
    )

    def score(messages: Sequence[Any]) -> Iterable[Any]:
        records = [(m.topic, m.partition, m.offset, m.timestamp[1], m.value) for m in messages]
        for (key, value, failed), message in zip(scoring.score(records), messages, strict=True):
            yield KafkaSinkMessage(key, value, topic=settings["verdicts"])
            if failed:
                yield KafkaSinkMessage(key, message.value, topic=settings["repair"])

    scored = op.flat_map_batch("score", source.oks, score)
    kop.output("write", scored, brokers=[settings["bootstrap"]], topic=settings["verdicts"])
    folder = Path(settings["folder"], f"recovery-{settings['member']}")
    folder.mkdir(exist_ok=True)
    init_db_dir(folder, 1)
    cluster_main(
        flow,
        [],
        0,
        epoch_interval=timedelta(seconds=settings["linger"]),
        recovery_config=RecoveryConfig(folder),
    )


def plain(settings: dict[str, Any]) -> None:
    """A file of lines to a file of verdicts, without Kafka."""
    scoring = Scoring(settings)
    with Path(settings["file"]).open("rb") as lines, Path(settings["out"]).open("wb") as out:
        number = 0
        while window := list(itertools.islice(lines, BATCH)):
            records = [("file", 0, number + place, 0, line) for place, line in enumerate(window)]
            number += len(window)
            out.writelines(value + b"\n" for _, value, _ in scoring.score(records))


PEERS = {item.__name__: item for item in (confluent, faststream, quix, bytewax, plain)}

if __name__ == "__main__":
    PEERS[sys.argv[1]](json.loads(Path(sys.argv[2]).read_text(encoding="utf-8")))
