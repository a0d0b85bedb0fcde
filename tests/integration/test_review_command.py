"""Labels feed back: the queue goes to Label Studio and comes home, and a judge learns from it."""

from __future__ import annotations

import asyncio
import json
import random
from math import exp
from pathlib import Path

import pytest
import yaml
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from typer.testing import CliRunner, Result

from ares_stream.cli.main import app
from ares_stream.lab.word_bundles import write_judge
from ares_stream.models.bundles import load_bundle
from ares_stream.models.signing import verify_signature
from ares_stream.records.label import Label, ReviewItem
from ares_stream.records.topics import specs
from ares_stream.streaming.admin import create_topics
from ares_stream.streaming.compacted import read_latest
from ares_stream.streaming.connection import KafkaConnection
from ares_stream.streaming.publisher import Publisher
from ares_stream.streaming.records import OutboundRecord
from tests.support.forecasts import asked
from tests.support.verdicts import NOON, verdict

pytestmark = pytest.mark.kafka


def item(number: int, answer: str, probability: float = 1.0) -> ReviewItem:
    return ReviewItem(
        cause="sampled",
        sampling_probability=probability,
        verdict=verdict(number),
        interaction=asked(number, answer),
    )


def label(number: int, harmful: bool, reviewer: str = "ada") -> Label:
    return Label(
        interaction_id=f"interaction-{number}", harmful=harmful, reviewer=reviewer, decided_at=NOON
    )


class Queue:
    """Topics of a review, and the commands on them."""

    def __init__(self, kafka: str, prefix: str, folder: Path) -> None:
        self.connection, self.prefix, self.folder = KafkaConnection(bootstrap=kafka), prefix, folder
        self.settings = folder / "ares.yaml"
        self.settings.write_text(
            yaml.safe_dump({"kafka": {"bootstrap": kafka}, "topic_prefix": prefix})
        )

    async def hold(self, items: list[ReviewItem], labels: list[Label]) -> None:
        await create_topics(self.connection, specs(self.prefix, partitions=2, replication=1))
        records = [
            OutboundRecord(f"{self.prefix}review", row.interaction.id.encode(), row.encode())
            for row in items
        ]
        records += [OutboundRecord(f"{self.prefix}labels", row.key, row.encode()) for row in labels]
        records.append(OutboundRecord(f"{self.prefix}review", b"x", b"no item"))
        async with Publisher(self.connection) as publisher:
            await publisher.publish(records)

    async def ares(self, *arguments: str) -> Result:
        line = [*arguments, "--settings", str(self.settings)]
        return await asyncio.to_thread(CliRunner().invoke, app, line)

    async def labels(self) -> dict[bytes, Label]:
        latest = await read_latest(self.connection, f"{self.prefix}labels")
        return {key: Label.decode(record.value or b"") for key, record in latest.items()}


@pytest.fixture
def queue(kafka: str, prefix: str, tmp_path: Path) -> Queue:
    return Queue(kafka, prefix, tmp_path)


async def test_the_queue_goes_to_label_studio_and_its_decisions_come_back_once(
    queue: Queue,
) -> None:
    await queue.hold([item(k, f"answer {k}") for k in range(6)], [label(0, True)])
    tasks, interface = queue.folder / "tasks.json", queue.folder / "interface.xml"
    done = await queue.ares("review", "export", str(tasks), "--interface", str(interface))
    assert done.exit_code == 0, done.output
    assert "5 tasks of 6 items" in done.stdout
    assert "review 0@" in done.stderr or "review 1@" in done.stderr  # The one that is no item.
    assert tasks.stat().st_mode & 0o077 == 0
    rows = json.loads(tasks.read_text())
    assert {row["data"]["ares"]["interaction_id"] for row in rows} == {
        f"interaction-{k}" for k in range(1, 6)
    }
    for number, row in enumerate(rows):
        row["annotations"] = [
            {
                "completed_by": 7,
                "was_cancelled": number == 4,
                "created_at": "2026-11-02T10:00:00Z",
                "result": [{"from_name": "decision", "type": "choices",
                            "value": {"choices": ["harmful" if number % 2 else "safe"]}}],
            }
        ]  # fmt: skip
    export = queue.folder / "export.json"
    export.write_text(json.dumps(rows))
    command = ("review", "import", str(export), "--reviewer", "7=bob")
    dry = await queue.ares(*command, "--dry-run")
    assert "4 labels would be published" in dry.stdout
    assert len(await queue.labels()) == 1
    first = await queue.ares(*command)
    assert first.exit_code == 1  # One was skipped, and it says which.
    assert "task 5, annotation 1: was skipped" in first.stderr
    assert "4 labels published, 0 there already, 1 passed over" in first.stdout
    again = await queue.ares(*command)
    assert "0 labels published, 4 there already, 1 passed over" in again.stdout
    held = await queue.labels()
    said = {row.interaction_id: row.harmful for row in held.values() if row.reviewer == "bob"}
    assert said == {
        row["data"]["ares"]["interaction_id"]: bool(number % 2)
        for number, row in enumerate(rows[:4])
    }
    wrong = await queue.ares("review", "import", str(export), "--reviewer", "bob")
    assert wrong.exit_code == 2
    assert "expected USER=NAME" in wrong.stderr


async def test_a_judge_is_recalibrated_from_the_labels_of_its_queue_and_signed(
    queue: Queue,
) -> None:
    rng = random.Random(4)
    judge = write_judge(queue.folder / "judge", {"bread": -1.0, "poison": 1.0})
    items, labels = [], []
    for number in range(300):
        logit = rng.randrange(-4, 5)
        word = "poison" if logit > 0 else "bread"
        probability = 1.0 if abs(logit) < 2 else 0.25
        items.append(item(number, " ".join([word] * abs(logit) or ["."]), probability))
        labels.append(label(number, rng.random() < 1 / (1 + exp(1.5 - 2.0 * logit))))
    labels += [label(0, not labels[0].harmful, "bob"), label(9999, True)]
    await queue.hold(items, labels)
    key, public = queue.folder / "key.pem", queue.folder / "public.pem"
    private = ec.generate_private_key(ec.SECP256R1())
    key.write_bytes(
        private.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
    )
    public.write_bytes(
        private.public_key().public_bytes(
            serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
        )
    )
    out = queue.folder / "judge-2"
    done = await queue.ares(
        "bundle", "recalibrate", str(judge.path), "--out", str(out), "--private-key", str(key)
    )
    assert done.exit_code == 0, (done.output, done.exception)
    assert "299 labels" in done.stdout
    assert "1 interactions whose labels contradict left out" in done.stdout
    verify_signature(out, public)
    fresh = load_bundle(out, "harm")
    assert fresh.manifest.calibration.slope == pytest.approx(2.0, abs=0.6)
    assert fresh.manifest.calibration.intercept == pytest.approx(-1.5, abs=0.6)
    assert fresh.model.read_bytes() == judge.model.read_bytes()
    assert fresh.manifest.lineage.base == judge.manifest.lineage.base
    assert len(fresh.manifest.lineage.data) == len(judge.manifest.lineage.data) + 1
    # It is as good as these labels can make it.
    again = queue.folder / "judge-3"
    as_good = await queue.ares("bundle", "recalibrate", str(out), "--out", str(again))
    assert as_good.exit_code == 1
    assert "nothing is written" in as_good.stdout
    assert not again.exists()


async def test_a_judge_with_few_labels_is_left_as_it_is(queue: Queue) -> None:
    judge = write_judge(queue.folder / "judge")
    rows = [("bread", "poison")[k % 2] for k in range(20)]
    await queue.hold(
        [item(k, row) for k, row in enumerate(rows)],
        [label(k, row == "poison") for k, row in enumerate(rows)],
    )
    out = queue.folder / "judge-2"
    done = await queue.ares("bundle", "recalibrate", str(judge.path), "--out", str(out))
    assert done.exit_code == 2
    assert "calibration needs 20 conversations of each label" in done.stderr
    assert not out.exists()
