"""Proofs of a topic that got more partitions, and what-ifs by models of quite another kind."""

from __future__ import annotations

import dataclasses
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

import numpy as np
import onnx
import pytest
import yaml
from aiokafka.admin import NewPartitions
from typer.testing import CliRunner

from ares_stream.audit.replay.models import WhatIf
from ares_stream.audit.replay.selecting import Names, select
from ares_stream.cli.main import app
from ares_stream.lab.word_bundles import adder
from ares_stream.models.bundles import (
    Bundle,
    InputTemplate,
    Lineage,
    Manifest,
    Outputs,
    write_bundle,
)
from ares_stream.records.base import OffsetRange
from ares_stream.streaming.connection import KafkaConnection
from ares_stream.streaming.records import InboundRecord
from tests.support.adapters import write_adapter
from tests.support.auditor import Auditor
from tests.support.golden_month import PROBE, PRODUCTION, Bundles, live
from tests.support.lived import Lived
from tests.support.tokenizers import byte_pairs


@pytest.fixture(scope="module")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> Bundles:
    return Bundles.write(tmp_path_factory.mktemp("bundles"))


@pytest.mark.kafka
async def test_a_topic_that_got_more_partitions_in_the_middle_is_proved_whole(
    kafka: str, prefix: str, bundles: Bundles, tmp_path: Path
) -> None:
    lived = Lived(KafkaConnection(bootstrap=kafka), prefix, bundles, tmp_path)
    await lived.create()
    answers = ("bread nice", "poison nice", "poison rude", "bread")
    rows = [lived.record(number, answers[number % 4]) for number in range(160)]
    await lived.publish(rows[:80])
    async with lived.admin() as client:
        for topic in (lived.production, *lived.outputs.all, lived.deadletters):
            await client.create_partitions({topic: NewPartitions(5)})
    await lived.publish(rows[80:])
    assert await lived.live() == 160
    found = await lived.replay()
    assert (found["differences"], found["counts"]["identical"]) == ([], 160)
    assert len(found["partitions"]) > 2
    timed = await lived.replay(await lived.choose(since_ms=0, until_ms=2**42))
    assert (timed["differences"], timed["counts"]["identical"]) == ([], 160)


class Growing:
    """A topic that gets a partition after it was looked at first."""

    def __init__(self) -> None:
        self.looks = 0

    async def snapshot(
        self, topics: Sequence[str], *, since_ms: int | None = None
    ) -> tuple[OffsetRange, ...]:
        self.looks += 1
        return tuple(
            OffsetRange(topic=topic, partition=number, start=0, end=5)
            for topic in topics
            for number in range(1 if self.looks <= 1 else 2)
        )

    async def read(self, ranges: Sequence[OffsetRange]) -> AsyncIterator[InboundRecord]:
        for record in list[InboundRecord]():
            yield record


async def test_a_partition_that_comes_while_the_range_is_fixed_is_not_of_the_range() -> None:
    names = Names(("in",), ("out",), "out", "repairs")
    chosen = await select(Growing(), names, since_ms=1, until_ms=9)
    assert {(item.topic, item.partition) for item in chosen.inputs} == {("in", 0)}


def test_what_if_by_a_bundle_of_another_kind_or_a_namesake_is_refused_before_anything_is_read(
    bundles: Bundles, tmp_path: Path
) -> None:
    adapter = write_adapter(tmp_path / "adapter")
    judge, reward = str(bundles.judge.path), str(bundles.rewards[0].path)
    inputs = [{"topic": PRODUCTION, "lane": "production"}, {"topic": PROBE, "lane": "probe"}]
    settings = tmp_path / "settings.yaml"
    # Nothing answers there.
    content = {
        "kafka": {"bootstrap": "127.0.0.1:9"},
        "scorer": {"inputs": inputs, "harm": [judge], "reward": reward},
    }
    settings.write_text(yaml.safe_dump(content))
    for words, said in (
        (("--harm", reward), "a bundle of kind reward, expected harm"),
        (("--reward", judge), "a bundle of kind harm, expected reward"),
        (("--harm", str(adapter)), "no bundle.json: not a bundle"),
        (("--harm", judge, "--harm", str(bundles.strict.path)), "two bundles are named judge"),
        (("--policy", judge), "cannot be read"),
    ):
        report = tmp_path / "report.json"
        done = CliRunner().invoke(
            app,
            ["replay", "--mode", "what-if", "--json", str(report), "--settings", str(settings),
             "--work", str(tmp_path / "work"), *words],
        )  # fmt: skip
        assert (done.exit_code, said in done.stderr) == (2, True), done.output
        assert len(done.stderr.strip().splitlines()) == 1
        assert not report.exists()


def test_what_if_by_a_judge_of_another_tokenizer_and_length_scores_by_its_own(
    bundles: Bundles, tmp_path: Path
) -> None:
    month = live(tmp_path / "month", count=90)
    auditor = Auditor(month, tmp_path)
    spec = auditor.spec()
    moves = {}
    for length in (12, 256):
        judge = byte_pair_judge(tmp_path / f"judge-{length}", length)
        resources = dataclasses.replace(
            spec.resources, bundles=(*spec.resources.bundles, str(judge.path))
        )
        what_if = WhatIf(judges=((judge.manifest.name, judge.digest),))
        found = [
            auditor.replay(
                dataclasses.replace(
                    spec, mode="what-if", what_if=what_if, resources=resources, block=block
                )
            )
            for block in (16, 512)
        ]
        # Whatever its neighbours, an answer gets one score.
        assert found[0]["what_if"] == found[1]["what_if"]
        assert judge.digest in {item["digest"] for item in found[0]["models"]}
        assert found[0]["counts"]["changed"] > 0
        moves[length] = found[0]["what_if"]["moves"]
    assert moves[12] != moves[256]


def byte_pair_judge(out: Path, max_length: int) -> Bundle:
    """Any weights; another judge than the month's in all but its kind."""
    tokenizer = byte_pairs()
    size = tokenizer.get_vocab_size()
    weights = np.random.default_rng(3).normal(size=size)
    manifest = Manifest(
        name="bytes",
        kind="harm",
        template=InputTemplate(
            first="{{ prompt }}", second="{{ response }}", max_length=max_length
        ),
        outputs=Outputs(activation="sigmoid", labels=(0,)),
        lineage=Lineage(base="bytes"),
    )
    work = out.with_name(f"{out.name}-files")
    work.mkdir()
    tokenizer.save(str(work / "tokenizer.json"))
    onnx.save(adder(weights), str(work / "model.onnx"))
    names = ("tokenizer.json", "model.onnx")
    return write_bundle(out, manifest, {name: work / name for name in names})
