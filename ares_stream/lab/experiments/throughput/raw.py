"""ONNX Runtime alone, on inputs that are tokenised and padded before the clock starts: what no host
around it can beat."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import onnxruntime as ort

from ares_stream.models.bundles import Bundle
from ares_stream.scoring.batching import CPU, BatchPolicy, padding_share, plan
from ares_stream.scoring.runtime import PROVIDERS, QUIET, Provider
from ares_stream.scoring.tokenising import Tokens

THREADS: Final = len(os.sched_getaffinity(0))


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
        """What was done since."""
        wall, cpu = time.perf_counter() - self._wall, time.process_time() - self._cpu
        return Pass(conversations / wall, conversations / cpu)


class Raw:
    """Sessions with the scorer's options, on the CPU or on a GPU, which `tf32` lets round."""

    def __init__(
        self, models: Sequence[Bundle], *, provider: Provider = "cpu", tf32: bool = False
    ) -> None:
        if provider == "cuda":
            ort.preload_dlls()
        own = {"use_tf32": str(int(tf32))} if provider == "cuda" else {}
        options = ort.SessionOptions()
        options.log_severity_level = QUIET
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        self._sessions = [
            ort.InferenceSession(
                str(bundle.model),
                sess_options=options,
                providers=[PROVIDERS[provider]],
                provider_options=[own],
            )
            for bundle in models
        ]
        self._wanted = [{item.name for item in session.get_inputs()} for session in self._sessions]

    def run(
        self, tokens: Sequence[Tokens], batches: Sequence[Sequence[int]], threads: int = THREADS
    ) -> Pass:
        """Each conversation through every session."""
        feeds = [_feed([tokens[row] for row in batch]) for batch in batches]
        jobs = [
            (session, {name: feed[name] for name in wanted})
            for session, wanted in zip(self._sessions, self._wanted, strict=True)
            for feed in feeds
        ]
        with ThreadPoolExecutor(threads) as pool:
            clock = Clock()
            list(pool.map(lambda job: job[0].run(None, job[1]), jobs))
            return clock.stop(len(tokens))


def _feed(batch: Sequence[Tokens]) -> dict[str, Any]:
    shape = (len(batch), max(len(item) for item in batch))
    ids, mask = np.zeros(shape, np.int64), np.zeros(shape, np.int64)
    for row, item in enumerate(batch):
        ids[row, : len(item)], mask[row, : len(item)] = item.ids, 1
    return {"input_ids": ids, "attention_mask": mask, "token_type_ids": np.zeros(shape, np.int64)}


Batching = Callable[[Sequence[int]], list[list[int]]]
"""Which inputs of these lengths run together."""


def one_by_one(lengths: Sequence[int]) -> list[list[int]]:
    """No company, no padding; long ones first, so that no thread is left with one at the end."""
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


BATCHINGS: Final[Sequence[Batching]] = (near_equal, one_by_one, sorted_budget, arrival_32)


def padding(lengths: Sequence[int], batches: Sequence[Sequence[int]]) -> float:
    """Share of all tokens run that are padding."""
    ran = [len(batch) * max(lengths[row] for row in batch) for batch in batches]
    padded = sum(
        size * padding_share([lengths[row] for row in batch])
        for size, batch in zip(ran, batches, strict=True)
    )
    return padded / sum(ran)


def better(raw: Raw, pilot: Sequence[Tokens]) -> Batching:
    """Of two batch policies the one that costs less CPU time here."""
    lengths = [len(item) for item in pilot]
    raw.run(pilot[:4], one_by_one(lengths[:4]))
    costs = {
        policy: raw.run(pilot, policy(lengths)).cpu_rate
        for policy in (one_by_one, near_equal, near_equal, one_by_one)
    }
    return max(costs, key=lambda policy: costs[policy])
