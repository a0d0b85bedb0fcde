"""One window of conversations through several models.

Models that read alike (one tokenizer, one template) share an encoder, and a conversation is
tokenised once for all of them, in as many parts as there are threads. Then one job per thread
takes runs off one list, the longest first: a future for each run would cost more than a short run.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass

from ares_stream.errors import ScoringError
from ares_stream.scoring.batching import padding_share
from ares_stream.scoring.contract import ScoringObserver
from ares_stream.scoring.model import Opinion, Output, Result, ScoringModel
from ares_stream.scoring.tokenising import Input, InputEncoder, Reading, Tokens

MIN_PART = 16
"""Fewer conversations are not worth a second thread's start."""

Readings = list[Reading | ScoringError]


@dataclass(frozen=True, slots=True)
class Question:
    """A model, and how many of a window's inputs, from the first on, it is asked about."""

    model: ScoringModel
    count: int


@dataclass(frozen=True, slots=True)
class _Batch:
    """Windows of text that run together: `places` are (input, window)."""

    places: Sequence[tuple[int, int]]
    tokens: Sequence[Tokens]
    padding: float

    @property
    def size(self) -> int:
        """Tokens, padding included; the longest input comes first."""
        return len(self.tokens) * len(self.tokens[0])


@dataclass(frozen=True, slots=True)
class _Run:
    """A batch on its way through a model."""

    question: int
    model: ScoringModel
    batch: _Batch


@dataclass(frozen=True, slots=True)
class _Share:
    """What one thread did: the runs that it took with their results, when it began, and how long
    it took."""

    done: Sequence[tuple[_Run, Sequence[Result | ScoringError]]]
    began: float
    seconds: float


async def ask(
    questions: Sequence[Question],
    inputs: Sequence[Input],
    executor: Executor,
    threads: int,
    observer: ScoringObserver,
) -> list[list[Opinion | ScoringError]]:
    """For each question one opinion per (interaction, answer), in order.

    A run that fails is halved down to the input at fault: its neighbours keep their opinions.
    """
    started = time.perf_counter()
    readings = await _read(questions, inputs, executor, threads)
    observer.stage("tokenise", time.perf_counter() - started)
    planned: dict[object, list[_Batch]] = {}
    runs: list[_Run] = []
    for number, (question, found) in enumerate(zip(questions, readings, strict=True)):
        model = question.model
        # Models that read alike run the same batches.
        key = (id(model.encoder), question.count, model.reads_decoded, model.batching)
        if key not in planned:
            planned[key] = _batches(model, found)
        runs += [_Run(number, model, batch) for batch in planned[key]]
    runs.sort(key=lambda run: -run.batch.size)
    waiting = iter(runs)
    started = time.perf_counter()
    loop = asyncio.get_running_loop()
    jobs = [loop.run_in_executor(executor, _work, waiting) for _ in range(min(threads, len(runs)))]
    places: list[list[tuple[int, int]]] = [[] for _ in questions]
    results: list[list[Result | ScoringError]] = [[] for _ in questions]
    for share in await asyncio.gather(*jobs):
        if not share.done:
            continue
        observer.stage("queue", share.began - started)
        observer.stage("infer", share.seconds)
        for run, given in share.done:
            observer.batch(run.model.name, len(run.batch.tokens), run.batch.padding)
            places[run.question] += run.batch.places
            results[run.question] += given
    return [
        _opinions(question.model, found, where, question.model.outputs(given))
        for question, found, where, given in zip(questions, readings, places, results, strict=True)
    ]


_MISSING = ScoringError("a run was lost")


def _opinions(
    model: ScoringModel,
    found: Readings,
    places: Sequence[tuple[int, int]],
    outputs: Sequence[Output | ScoringError],
) -> list[Opinion | ScoringError]:
    """One per reading, from the outputs of its windows."""
    rows: list[list[Output | ScoringError]] = [
        [] if isinstance(item, ScoringError) else [_MISSING] * len(model.windows(item))
        for item in found
    ]
    for (place, window), output in zip(places, outputs, strict=True):
        rows[place][window] = output
    return [
        item if isinstance(item, ScoringError) else model.opinion(item, out)
        for item, out in zip(found, rows, strict=True)
    ]


async def _read(
    questions: Sequence[Question], inputs: Sequence[Input], executor: Executor, threads: int
) -> list[Readings]:
    """Each question's inputs as its model reads them."""
    most: dict[int, tuple[InputEncoder, int]] = {}
    for question in questions:
        encoder = question.model.encoder
        _, known = most.get(id(encoder), (encoder, 0))
        most[id(encoder)] = (encoder, max(known, question.count))
    loop = asyncio.get_running_loop()
    parts: dict[int, list[asyncio.Future[Readings]]] = {}
    for key, (encoder, count) in most.items():
        size = max(MIN_PART, -(-count // threads))
        parts[key] = [
            loop.run_in_executor(executor, encoder.read, inputs[at : min(at + size, count)])
            for at in range(0, count, size)
        ]
    await asyncio.gather(*(part for several in parts.values() for part in several))
    read = {
        key: [item for part in several for item in part.result()] for key, several in parts.items()
    }
    return [read[id(question.model.encoder)][: question.count] for question in questions]


def _batches(model: ScoringModel, found: Readings) -> list[_Batch]:
    places: list[tuple[int, int]] = []
    tokens: list[Tokens] = []
    lengths: list[int] = []
    for place, item in enumerate(found):
        if isinstance(item, Reading):
            for window, part in enumerate(model.windows(item)):
                places.append((place, window))
                tokens.append(part)
                lengths.append(len(part))
    return [
        _Batch(
            [places[row] for row in batch],
            [tokens[row] for row in batch],
            padding_share([lengths[row] for row in batch]),
        )
        for batch in model.plan(lengths)
    ]


def _work(waiting: Iterator[_Run]) -> _Share:
    """Take runs until none is left. `next` of a list's iterator gives each to one thread."""
    began = time.perf_counter()
    done = [(run, run.model.run(run.batch.tokens)) for run in waiting]
    return _Share(done, began, time.perf_counter() - began)
