"""Scoring on a GPU: the numbers of the CPU, memory that others hold, verdicts that a CPU proves.

Skips where there is none; ARES_REQUIRE_GPU=1 makes that a failure (`make gpu`).
"""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from ares_stream.errors import ResourceError
from ares_stream.lab.experiments.throughput.models import Pair, bert_pair, conversations
from ares_stream.models.bundles import Bundle
from ares_stream.records.topics import PRODUCTION, specs, topic_name
from ares_stream.scoring.batching import GPU
from ares_stream.scoring.model import ScoringModel
from ares_stream.scoring.panel import DUMMY, Panel, Scores, ScoringConfig
from ares_stream.scoring.runtime import OnnxModel, available_providers
from ares_stream.scoring.tokenising import InputEncoder, Tokens
from ares_stream.streaming.admin import create_topics
from ares_stream.streaming.connection import KafkaConnection
from ares_stream.streaming.records import OutboundRecord
from tests.support.exactly_once import publish
from tests.support.scorer_process import ScorerProcess

pytestmark = pytest.mark.gpu
MIB = 1 << 20


@pytest.fixture(scope="module", autouse=True)
def gpu() -> None:
    import torch

    if "CUDAExecutionProvider" in available_providers() and torch.cuda.is_available():
        return
    reason = "no GPU, or no onnxruntime-gpu: this onnxruntime has " + ", ".join(
        available_providers()
    )
    if os.environ.get("ARES_REQUIRE_GPU") == "1":
        pytest.fail(reason)
    pytest.skip(reason)


@pytest.fixture(scope="module")
def pair(gpu: None, tmp_path_factory: pytest.TempPathFactory) -> Pair:
    return bert_pair(tmp_path_factory.mktemp("models"))


@pytest.fixture(scope="module")
def judge(pair: Pair) -> Bundle:
    return pair.judge


@pytest.fixture(scope="module")
def tokens(judge: Bundle) -> list[Tokens]:
    asked = [(item, item.response) for item in conversations(128)]
    return [item for item in InputEncoder(judge).encode(asked) if isinstance(item, Tokens)]


def logits(model: OnnxModel, batches: Sequence[Sequence[Tokens]]) -> Any:
    return np.concatenate([model.run(batch)[:, 0] for batch in batches])


def free() -> int:
    """Bytes of the GPU's memory that nobody holds."""
    import torch

    return int(torch.cuda.mem_get_info()[0])


def test_a_gpu_gives_the_numbers_of_the_cpu(judge: Bundle, tokens: list[Tokens]) -> None:
    on_cpu = logits(OnnxModel(judge, "cpu"), [tokens])
    on_gpu = OnnxModel(judge, "cuda")
    assert on_gpu.provider == "CUDAExecutionProvider"
    assert on_gpu.batching == GPU
    np.testing.assert_allclose(logits(on_gpu, [tokens]), on_cpu, atol=1e-5)


def test_a_gpu_scores_a_record_as_it_would_alone(judge: Bundle, tokens: list[Tokens]) -> None:
    model = OnnxModel(judge, "cuda")
    alone = logits(model, [[item] for item in tokens])
    np.testing.assert_allclose(logits(model, [tokens]), alone, atol=1e-5)


def test_only_who_asks_for_it_gets_rounded_products(judge: Bundle, tokens: list[Tokens]) -> None:
    exact = logits(OnnxModel(judge, "cuda"), [tokens])
    rounded = logits(OnnxModel(judge, "cuda", tf32=True), [tokens])
    assert 1e-5 < np.abs(rounded - exact).max() < 0.05


def test_swapped_models_give_their_memory_back(judge: Bundle) -> None:
    model = OnnxModel(judge, "cuda")
    model.run([Tokens(np.array([2, 3]), np.array([0, 0]))])
    del model
    before = free()
    for _ in range(5):
        model = OnnxModel(judge, "cuda")
        model.run([Tokens(np.array([2, 3]), np.array([0, 0]))])
        del model
    assert before - free() < judge.model.stat().st_size


@pytest.fixture
def little_memory(judge: Bundle, tokens: list[Tokens]) -> Iterator[ScoringModel]:
    """A model that is loaded, and a GPU of which another holds all but some MiB. On a card this
    process shares nothing with, so that what it holds can be counted."""
    import torch

    model = ScoringModel(judge, "cuda")
    model.run([tokens[-1]])
    held = torch.empty(max(0, free() - 24 * MIB), dtype=torch.uint8, device="cuda")
    yield model
    del held
    torch.cuda.empty_cache()


def test_memory_that_another_process_holds_refuses_no_record(
    little_memory: ScoringModel, tokens: list[Tokens]
) -> None:
    import torch

    batch = sorted(tokens, key=len, reverse=True)
    with pytest.raises(ResourceError, match="the GPU has no memory left for"):
        little_memory._onnx.run(batch * 8)
    try:
        results = little_memory.run(batch * 8)
    except ResourceError as error:
        assert "the GPU has no memory left" in str(error)  # noqa: PT017 - either may come of it
    else:
        assert len(little_memory.outputs(results)) == 8 * len(batch)
    torch.cuda.empty_cache()


def test_the_model_scores_again_once_the_memory_is_there(
    judge: Bundle, tokens: list[Tokens]
) -> None:
    assert len(ScoringModel(judge, "cuda").run(tokens)) == 1


def test_a_panel_says_on_a_gpu_what_it_says_on_a_cpu(pair: Pair) -> None:
    rows = conversations(200)

    async def scored(config: ScoringConfig) -> list[Scores]:
        panel = Panel.open([pair.judge], pair.reward, config)
        found = await panel.score([*rows, DUMMY])
        await panel.aclose()
        assert all(isinstance(item, Scores) for item in found)
        return [item for item in found if isinstance(item, Scores)]

    pairs = zip(
        asyncio.run(scored(ScoringConfig("cuda"))), asyncio.run(scored(ScoringConfig())),
        strict=True,
    )  # fmt: skip
    for one, other in pairs:
        assert one.harm.probability == pytest.approx(other.harm.probability, abs=1e-5)
        assert one.reward.score == pytest.approx(other.reward.score, abs=1e-5)


@pytest.mark.kafka
async def test_verdicts_of_a_gpu_are_proved_on_a_cpu(
    kafka: str, prefix: str, tmp_path: Path, pair: Pair
) -> None:
    rows = conversations(400)
    connection = KafkaConnection(bootstrap=kafka)
    await create_topics(connection, specs(prefix, partitions=2, replication=1))
    topic = topic_name(prefix, PRODUCTION)
    await publish(kafka, [OutboundRecord(topic, i.id.encode(), i.encode()) for i in rows])
    inputs = [{"topic": topic, "lane": "production"}]
    with ScorerProcess(
        kafka, prefix, tmp_path / "scorer", harm=pair.judge, reward=pair.reward, provider="cuda",
        inputs=inputs, allow_shared_lineage=True,
    ) as scorer:  # fmt: skip
        await scorer.until_done([PRODUCTION])
        info = 'ares_execution_provider_info{model="%s",provider="CUDAExecutionProvider"}'
        assert await scorer.metric(info % pair.judge.manifest.name) == 1
        await scorer.drained()
    settings, report = tmp_path / "settings.yaml", tmp_path / "report.json"
    settings.write_text(
        yaml.safe_dump(
            {
                "kafka": {"bootstrap": kafka},
                "topic_prefix": prefix,
                "scorer": {
                    "inputs": inputs,
                    "harm": [str(pair.judge.path)], "reward": str(pair.reward.path),
                    "allow_shared_lineage": True, "follow_releases": False,
                },
            }
        )
    )  # fmt: skip
    line = [sys.executable, "-m", "ares_stream", "replay", "--settings", str(settings)]
    line += ["--json", str(report), "--work", str(tmp_path / "work"), "--provider", "cpu"]
    ended = await asyncio.to_thread(
        subprocess.run, line, capture_output=True, text=True, check=False
    )
    assert ended.returncode == 0, ended.stderr
    document = json.loads(report.read_bytes())
    counts = document["counts"]
    assert counts["identical"] + counts["tolerated"] == len(rows)
    print(f"on the CPU: {counts}")
