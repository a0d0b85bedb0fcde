"""Throughput of the panel, and of the whole scorer from topic to visible verdict, as shares of the
raw ONNX Runtime loop.

    python -m benchmarks.bench_scoring [--seconds 150] [--json FILE]      (make bench)

The model is a BERT of MiniLM-L6's size with random weights, made and exported once to build/bench;
it plays judge and reward model both, so that each conversation runs twice. The raw loop gets the
same inputs already tokenised, sessions with the same options, as many threads, and the better of
two batch policies; the pipeline gets conversations. The two take turns in one run (A-B-B-A), so
that a change of the machine's load hits both alike. Figures are medians, with the range. Each pass
takes two windows of the scorer at least. "panel" is text to scores inside one process; "topic to
verdict" is the `ares scorer` process on a real Kafka (benchmarks/end_to_end.py).
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import platform
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import numpy as np
import onnxruntime as ort
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from ares_stream.models.bundles import (
    Bundle,
    InputTemplate,
    Lineage,
    Manifest,
    Outputs,
    RewardReference,
    load_bundle,
    write_bundle,
)
from ares_stream.records.interaction import Interaction, Message, Policy
from ares_stream.scoring.batching import CPU, BatchPolicy, padding_share, plan
from ares_stream.scoring.panel import Panel
from ares_stream.scoring.tokenising import InputEncoder, Tokens
from benchmarks.end_to_end import through_kafka

BUILD: Final = Path("build/bench")
THREADS: Final = len(os.sched_getaffinity(0))
ROUNDS: Final = 2
WINDOW: Final = 128
"""Records the scorer's processor hands over together."""
MAX_LENGTH: Final = 256
MEAN_LENGTH: Final = 159
SIGMA: Final = 0.6
"""Of the logarithm of the length: chats are short, with a long tail."""


@dataclass(frozen=True, slots=True)
class Pass:
    """Conversations per second, and per second of CPU time: the latter says what the work costs
    on a machine that others use too."""

    rate: float
    cpu_rate: float


class Clock:
    """Measures one pass from where it is made."""

    def __init__(self) -> None:
        self._wall, self._cpu = time.perf_counter(), time.process_time()

    def stop(self, conversations: int) -> Pass:
        wall, cpu = time.perf_counter() - self._wall, time.process_time() - self._cpu
        return Pass(conversations / wall, conversations / cpu)


@dataclass(frozen=True, slots=True)
class Figure:
    """Medians and range over the passes of one contestant; share of its tokens that pad."""

    name: str
    rate: float
    low: float
    high: float
    cpu_rate: float
    padding: float

    @classmethod
    def of(cls, name: str, passes: Sequence[Pass], padding: float) -> Figure:
        rates = [item.rate for item in passes]
        cpu = statistics.median(item.cpu_rate for item in passes)
        return cls(name, statistics.median(rates), min(rates), max(rates), cpu, padding)


# The models


def bundles() -> tuple[Bundle, Bundle, Bundle, Bundle]:
    """Judge and reward model of MiniLM-L6's size; and both with a model that does nothing."""
    names = ("judge", "reward", "null-judge", "null-reward")
    if not all((BUILD / name / "bundle.json").is_file() for name in names):
        judge = _export(BUILD / "judge")
        null = BUILD / "null.onnx"
        _write_null(null)
        for name, model in (("reward", judge.model), ("null-judge", null), ("null-reward", null)):
            _as_bundle(name, model, judge)
    judge, reward, null_judge, null_reward = (load_bundle(BUILD / name) for name in names)
    return judge, reward, null_judge, null_reward


def _export(out: Path) -> Bundle:
    import torch
    from transformers import BertConfig, BertForSequenceClassification, PreTrainedTokenizerFast

    from ares_stream.training.checkpoints import quiet_transformers
    from ares_stream.training.export import export_bundle

    checkpoint = BUILD / "checkpoint"
    torch.manual_seed(0)
    tokenizer = _tokenizer()
    config: dict[str, Any] = {
        "vocab_size": tokenizer.get_vocab_size(),
        "hidden_size": 384,
        "intermediate_size": 1536,
        "num_hidden_layers": 6,
        "num_attention_heads": 12,
        "num_labels": 1,
    }
    wrapped: Any = PreTrainedTokenizerFast
    with quiet_transformers():
        BertForSequenceClassification(BertConfig(**config)).save_pretrained(checkpoint)
        wrapped(
            tokenizer_object=tokenizer,
            model_input_names=["input_ids", "token_type_ids", "attention_mask"],
        ).save_pretrained(checkpoint)
        return export_bundle(
            "harm",
            checkpoint,
            out,
            name="judge",
            max_length=MAX_LENGTH,
            sample=conversations(64),
        )


def _tokenizer() -> Any:
    """A word-piece tokenizer as BERT's, with a vocabulary learnt from the texts measured."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors, trainers

    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))  # noqa: S106
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    trainer = trainers.WordPieceTrainer(
        vocab_size=8000, special_tokens=special, show_progress=False
    )
    tokenizer.train_from_iterator((item.response for item in conversations(2000)), trainer)
    tokenizer.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    return tokenizer


def _write_null(path: Path) -> None:
    from onnx import TensorProto, helper, save

    nodes = [
        helper.make_node("Cast", ["attention_mask"], ["mask"], to=TensorProto.FLOAT),
        helper.make_node("ReduceMean", ["mask"], ["logits"], axes=[1], keepdims=1),
    ]
    inputs = [
        helper.make_tensor_value_info(name, TensorProto.INT64, ["batch", "length"])
        for name in ("input_ids", "attention_mask")
    ]
    output = helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", 1])
    graph = helper.make_graph(nodes, "null", inputs, [output])
    save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=10), path)


def _as_bundle(name: str, model: Path, judge: Bundle) -> None:
    reward = name.endswith("reward")
    manifest = Manifest(
        name=name,
        kind="reward" if reward else "harm",
        template=InputTemplate.model_validate(judge.manifest.template.model_dump()),
        outputs=Outputs(activation="identity" if reward else "sigmoid", labels=(0,)),
        lineage=Lineage(base="random weights"),
        reference=RewardReference(version="0" * 64, count=2, scores=(-1.0, 1.0)),
    )
    write_bundle(BUILD / name, manifest, {"model.onnx": model, "tokenizer.json": judge.tokenizer})


def conversations(count: int) -> list[Interaction]:
    """Invented words; lengths lognormal, MEAN_LENGTH tokens on average before they are cut."""
    random = np.random.default_rng(0)
    syllables = ["ba", "re", "ti", "lo", "mun", "sor", "ka", "ve", "dis", "pol", "an", "gre"]
    words = ["".join(random.choice(syllables, random.integers(1, 4))) for _ in range(3000)]
    center = np.log(MEAN_LENGTH) - SIGMA**2 / 2
    lengths = random.lognormal(center, SIGMA, count).clip(8, 2000).astype(int)
    made: list[Interaction] = []
    for number, length in enumerate(lengths):
        # Frequent words are few, as in a language.
        text = [words[int(place)] for place in random.zipf(1.3, length) % len(words)]
        cut = max(2, length // 4)
        made.append(
            Interaction(
                id=str(number),
                occurred_at=datetime(2024, 1, 1, tzinfo=UTC),
                messages=(Message(role="user", content=" ".join(text[:cut])),),
                response=" ".join(text[cut:]),
                policy=Policy(name="bench", version="1"),
            )
        )
    return made


# The contestants


class Raw:
    """ONNX Runtime alone: the inputs are tokenised and padded before the clock starts."""

    def __init__(self, models: Sequence[Bundle]) -> None:
        options = ort.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        self._sessions = [
            ort.InferenceSession(
                str(bundle.model), sess_options=options, providers=["CPUExecutionProvider"]
            )
            for bundle in models
        ]

    def run(self, tokens: Sequence[Tokens], batches: Sequence[Sequence[int]]) -> Pass:
        """Each conversation through every session."""
        feeds = [_feed([tokens[row] for row in batch]) for batch in batches]
        jobs = [(session, feed) for session in self._sessions for feed in feeds]
        with ThreadPoolExecutor(THREADS) as pool:
            clock = Clock()
            list(pool.map(lambda job: job[0].run(None, job[1]), jobs))
            return clock.stop(len(tokens))


def _feed(batch: Sequence[Tokens]) -> dict[str, Any]:
    shape = (len(batch), max(len(item) for item in batch))
    ids, mask = np.zeros(shape, np.int64), np.zeros(shape, np.int64)
    for row, item in enumerate(batch):
        ids[row, : len(item)], mask[row, : len(item)] = item.ids, 1
    return {"input_ids": ids, "attention_mask": mask, "token_type_ids": np.zeros(shape, np.int64)}


async def pipeline(panel: Panel, interactions: Sequence[Interaction]) -> Pass:
    """From text to scores; windows side by side, as the scorer's are."""
    clock = Clock()
    windows = [interactions[at : at + WINDOW] for at in range(0, len(interactions), WINDOW)]
    for results in await asyncio.gather(*(panel.score(window) for window in windows)):
        for result in results:
            if isinstance(result, Exception):
                raise result
    return clock.stop(len(interactions))


def one_by_one(lengths: Sequence[int]) -> list[list[int]]:
    """No batching and no padding; the longest first, so that no thread waits for it at the end."""
    return [[row] for row in sorted(range(len(lengths)), key=lambda row: -lengths[row])]


def near_equal(lengths: Sequence[int]) -> list[list[int]]:
    """The scorer's policy on a CPU."""
    return plan(lengths, CPU)


def sorted_budget(lengths: Sequence[int]) -> list[list[int]]:
    """Sorted by length under 4,096 tokens, however much is padded."""
    return plan(lengths, BatchPolicy(tokens=4096, records=512, padding=1.0))


def arrival_32(lengths: Sequence[int]) -> list[list[int]]:
    """In order of arrival, 32 together."""
    return [list(range(at, min(at + 32, len(lengths)))) for at in range(0, len(lengths), 32)]


POLICIES: Final = (near_equal, one_by_one, sorted_budget, arrival_32)


def padding(lengths: Sequence[int], batches: Sequence[Sequence[int]]) -> float:
    """Share of all tokens run that are padding."""
    ran = [len(batch) * max(lengths[row] for row in batch) for batch in batches]
    padded = sum(
        size * padding_share([lengths[row] for row in batch])
        for size, batch in zip(ran, batches, strict=True)
    )
    return padded / sum(ran)


# The measurement


def measure(seconds: float, advance: Callable[[str], None]) -> dict[str, Any]:
    """Everything, in about so many seconds after the export."""
    advance("making and exporting the model")
    judge, reward, *null = bundles()
    everything = conversations(2048)
    encoded = InputEncoder(judge).encode([(item, item.response) for item in everything])
    tokens = [item for item in encoded if isinstance(item, Tokens)]
    if len(tokens) != len(everything):
        raise RuntimeError("a conversation could not be tokenised")
    raw = Raw([judge, reward])
    panel = Panel.open([judge], reward)

    advance("warming up")
    pilot = tokens[:24]
    lengths = [len(item) for item in pilot]
    raw.run(pilot[:4], one_by_one(lengths[:4]))
    asyncio.run(pipeline(panel, everything[:4]))
    speeds = {
        policy: raw.run(pilot, policy(lengths))
        for policy in (one_by_one, near_equal, near_equal, one_by_one)
    }
    best = max(speeds, key=lambda policy: speeds[policy].cpu_rate)
    count = int(np.clip(speeds[best].rate * seconds * 0.5 / (4 * ROUNDS), 2 * WINDOW, 2048))

    lengths = [len(item) for item in tokens[:count]]
    batches = best(lengths)
    passes: dict[str, list[Pass]] = {"raw": [], "panel": []}
    for number in range(ROUNDS):
        advance(f"{count} conversations, round {number + 1} of {ROUNDS}")
        for contestant in ("raw", "panel", "panel", "raw"):
            passes[contestant].append(
                raw.run(tokens[:count], batches)
                if contestant == "raw"
                else asyncio.run(pipeline(panel, everything[:count]))
            )

    advance("from topic to visible verdict")
    whole_scorer = asyncio.run(through_kafka(judge, reward, everything[:count]))
    null_scorer = asyncio.run(through_kafka(null[0], null[1], everything))
    passes["raw"].append(raw.run(tokens[:count], batches))

    advance("batch policies")
    few = max(32, count // 2)
    lengths = [len(item) for item in tokens[:few]]
    single = Raw([judge])
    by_policy: dict[str, list[Pass]] = {policy.__name__: [] for policy in POLICIES}
    for policies in (POLICIES, POLICIES[::-1]):
        for policy in policies:
            by_policy[policy.__name__].append(single.run(tokens[:few], policy(lengths)))

    advance("the host's own cost")
    host = asyncio.run(_host_cost(null, everything[:1024]))
    whole = [len(item) for item in tokens[:count]]
    contestants = [
        Figure.of("raw", passes["raw"], padding(whole, batches)),
        Figure.of("panel", passes["panel"], padding(whole, near_equal(whole))),
    ]
    return {
        "machine": {
            "processor": _processor(),
            "threads": THREADS,
            "python": platform.python_version(),
            "onnxruntime": ort.__version__,
        },
        "conversations": count,
        "mean_tokens": float(np.mean(whole)),
        "ratio": contestants[1].rate / contestants[0].rate,
        "cpu_ratio": contestants[1].cpu_rate / contestants[0].cpu_rate,
        "raw_policy": best.__name__,
        "contestants": [asdict(figure) for figure in contestants],
        "policies": [
            asdict(
                Figure.of(
                    policy.__name__, by_policy[policy.__name__], padding(lengths, policy(lengths))
                )
            )
            for policy in POLICIES
        ],
        "host_cpu_microseconds": host,
        "topic_to_verdict": asdict(whole_scorer)
        | {
            "ratio": whole_scorer.rate / contestants[0].rate,
            "cpu_ratio": whole_scorer.cpu_rate / contestants[0].cpu_rate,
            "host_cpu_microseconds": 1e6 / null_scorer.cpu_rate,
        },
    }


async def _host_cost(models: Sequence[Bundle], interactions: Sequence[Interaction]) -> float:
    """CPU time per conversation, in microseconds, with two models that compute nothing."""
    panel = Panel.open(models[:1], models[1])
    await panel.warm_up()
    once = await pipeline(panel, interactions)
    await panel.aclose()
    return 1e6 / once.cpu_rate


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line.split(":")[1].strip() for line in lines if "model name" in line), "unknown")


def tables(figures: dict[str, Any]) -> Iterator[Table | str]:
    """What a person reads."""
    yield _table(
        f"panel: {figures['ratio']:.3f} of the raw loop, {figures['cpu_ratio']:.3f} by CPU time "
        f"({figures['conversations']} conversations, {figures['mean_tokens']:.0f} tokens each on "
        f"average, two models, {figures['machine']['threads']} threads; "
        f"the host's own cost {figures['host_cpu_microseconds']:.0f} µs)",
        figures["contestants"],
    )
    end = figures["topic_to_verdict"]
    text = (
        f"topic to visible verdict: {end['rate']:.1f} conversations/s, {end['cpu_rate']:.1f} per "
        f"CPU second of the scorer: {end['ratio']:.3f} of the raw loop by the clock, with broker "
        f"and reader on the same cores, {end['cpu_ratio']:.3f} by CPU time; with models that do "
        f"nothing {end['host_cpu_microseconds']:.0f} µs of CPU each; ready in "
        f"{end['ready_seconds']:.1f} s, {end['idle_mebibytes']:.0f} MiB"
    )
    yield text
    yield _table("batch policies, raw loop, one model", figures["policies"])


def _table(title: str, rows: Sequence[dict[str, Any]]) -> Table:
    table = Table(title=title, title_justify="left")
    table.add_column("")
    for column in ("conversations/s", "range", "per CPU second", "padding"):
        table.add_column(column, justify="right")
    for row in rows:
        table.add_row(
            row["name"].replace("_", " "),
            f"{row['rate']:.1f}",
            f"{row['low']:.1f} to {row['high']:.1f}",
            f"{row['cpu_rate']:.1f}",
            f"{row['padding']:.1%}",
        )
    return table


def main() -> None:
    """Measure, print, and write the JSON file if one is named."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=150.0, help="time to measure in, about")
    parser.add_argument("--json", type=Path, help="also write the figures here")
    arguments = parser.parse_args()
    with Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        TimeElapsedColumn(),
        console=Console(stderr=True),
    ) as bar:
        task = bar.add_task("", total=ROUNDS + 6)
        figures = measure(
            arguments.seconds,
            lambda stage: bar.update(task, description=stage, advance=1),
        )
    for table in tables(figures):
        Console().print(table)
    if arguments.json is not None:
        arguments.json.parent.mkdir(parents=True, exist_ok=True)
        arguments.json.write_text(json.dumps(figures, indent=2) + "\n")


if __name__ == "__main__":
    main()
