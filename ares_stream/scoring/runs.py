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
from ares_stream.scoring.model import Opinion, Output, ScoringModel
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
class _Run:
    """Windows of text that pass through a model together: `places` are (input, window)."""

    question: int
    model: ScoringModel
    places: Sequence[tuple[int, int]]
    tokens: Sequence[Tokens]


@dataclass(frozen=True, slots=True)
class _Done:
    run: _Run
    outputs: Sequence[Output | ScoringError]
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
    runs: list[_Run] = []
    for number, (question, found) in enumerate(zip(questions, readings, strict=True)):
        runs += _runs(number, question.model, found)
    runs.sort(key=lambda run: -len(run.tokens) * len(run.tokens[0]))
    waiting = iter(runs)
    started = time.perf_counter()
    loop = asyncio.get_running_loop()
    jobs = [loop.run_in_executor(executor, _work, waiting) for _ in range(min(threads, len(runs)))]
    outputs: list[list[list[Output | ScoringError]]] = [
        [
            [] if isinstance(item, ScoringError) else [_MISSING] * len(question.model.windows(item))
            for item in found
        ]
        for question, found in zip(questions, readings, strict=True)
    ]
    for done in await asyncio.gather(*jobs):
        for item in done:
            run = item.run
            padding = padding_share([len(tokens) for tokens in run.tokens])
            observer.batch(run.model.name, len(run.tokens), padding)
            observer.stage("queue", item.began - started)
            observer.stage("infer", item.seconds)
            rows = outputs[run.question]
            for (place, window), output in zip(run.places, item.outputs, strict=True):
                rows[place][window] = output
    return [
        [
            item if isinstance(item, ScoringError) else question.model.opinion(item, out)
            for item, out in zip(found, rows, strict=True)
        ]
        for question, found, rows in zip(questions, readings, outputs, strict=True)
    ]


_MISSING = ScoringError("a run was lost")


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


def _runs(number: int, model: ScoringModel, found: Readings) -> Iterator[_Run]:
    places: list[tuple[int, int]] = []
    tokens: list[Tokens] = []
    for place, item in enumerate(found):
        if isinstance(item, Reading):
            windows = model.windows(item)
            places += [(place, window) for window in range(len(windows))]
            tokens += windows
    for batch in model.plan([len(item) for item in tokens]):
        yield _Run(number, model, [places[row] for row in batch], [tokens[row] for row in batch])


def _work(waiting: Iterator[_Run]) -> list[_Done]:
    """Take runs until none is left. `next` of a list's iterator gives each to one thread."""
    done: list[_Done] = []
    for run in waiting:
        began = time.perf_counter()
        outputs = run.model.run(run.tokens)
        done.append(_Done(run, outputs, began, time.perf_counter() - began))
    return done
