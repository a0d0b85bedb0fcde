"""A replay from its start to its result: sort the outputs, replay the blocks, in processes.

One process per worker, which opens its own models; a block is done whole or not at all, and what
is done is kept in the folder. So a result is the same for any number of workers and restarts.
"""

from __future__ import annotations

import asyncio
import gc
import multiprocessing
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import aclosing, contextmanager
from dataclasses import dataclass, replace
from multiprocessing.util import Finalize
from pathlib import Path
from typing import Any, Final, Literal

from ares_stream import errors
from ares_stream.audit.replay.block import BlockReplay
from ares_stream.audit.replay.models import MadeWith, Models
from ares_stream.audit.replay.recorded import Output
from ares_stream.audit.replay.sorting import Place, Sorter
from ares_stream.audit.replay.source import Source
from ares_stream.audit.replay.spec import (
    LISTED,
    BlockResult,
    Horizon,
    Job,
    ReplaySpec,
    Selection,
    blocks,
)
from ares_stream.audit.replay.work import Work, horizon
from ares_stream.errors import AresError, ResourceError
from ares_stream.processes.parent import die_with_parent
from ares_stream.records.base import OffsetRange
from ares_stream.scoring.handler import Scorer

Stage = Literal["outputs", "records"]
Progress = Callable[[Stage, int], None]
"""Told of offsets that are done: of outputs sorted, of inputs replayed."""
Null = Callable[[MadeWith], Scorer]

AHEAD: Final = 2
"""Jobs per worker that wait in its queue."""


@dataclass(frozen=True, slots=True)
class Replayed:
    """What a replay gave: blocks in order, and records of the outputs that are no outputs."""

    selection: Selection
    results: tuple[BlockResult, ...]
    strange: tuple[dict[str, Any], ...]
    horizon: Horizon
    places: tuple[tuple[str, int], ...]
    """Every input partition of which this replay or another part takes some."""

    @property
    def faults(self) -> int:
        """What is not as recorded."""
        return len(self.strange) + sum(item.faults for item in self.results)


def run_replay(
    spec: ReplaySpec,
    selection: Selection,
    folder: Path,
    *,
    workers: int = 1,
    part: tuple[int, int] = (0, 1),
    progress: Progress = lambda stage, offsets: None,
    null: Null | None = None,
) -> Replayed:
    """Replay; what an earlier run left in the folder is not done again.

    `part` is (index, of): of all input partitions this run takes every of-th, from the index-th
    on. `null` stands in for the models, in this process alone. Raises ReadError, TopicError,
    BundleError and the like: then nothing is said of any record.
    """
    work = Work(folder, spec.block)
    selection = work.begin(spec, selection, part)
    places = tuple(sorted({(item.topic, item.partition) for item in selection.inputs}))
    mine = replace(selection, inputs=_part(selection.inputs, places, part))
    sorting = blocks(mine.outputs, spec.block)
    replaying = blocks(mine.inputs, spec.block)
    with _workers(spec, mine, folder, workers, null) as run:
        todo = [job for job in sorting if work.sorted(job) is None]
        _tell(progress, "outputs", sorting, todo)
        for job in run("sort", todo, None):
            progress("outputs", job.end - job.start)
        stretches = [found for job in sorting if (found := work.sorted(job)) is not None]
        seen = horizon(stretches, mine.outputs, kinds(spec))
        todo = [job for job in replaying if work.done(job) is None]
        _tell(progress, "records", replaying, todo)
        for job in run("replay", todo, seen):
            progress("records", job.end - job.start)
    strange = tuple(item for found in stretches for item in found.strange)
    return Replayed(mine, tuple(work.results(replaying)), strange[:LISTED], seen, places)


def kinds(spec: ReplaySpec) -> dict[str, Output]:
    """The output topics."""
    return {
        spec.outputs.verdicts: Output.VERDICT,
        spec.deadletters: Output.LETTER,
        spec.outputs.repair: Output.REPAIR,
        spec.outputs.review: Output.REVIEW,
    }


def _part(
    ranges: Sequence[OffsetRange], places: Sequence[tuple[str, int]], part: tuple[int, int]
) -> tuple[OffsetRange, ...]:
    index, of = part
    mine = set(places[index::of])
    return tuple(item for item in ranges if (item.topic, item.partition) in mine)


def _tell(progress: Progress, stage: Stage, jobs: Sequence[Job], todo: Sequence[Job]) -> None:
    done = sum(job.end - job.start for job in jobs) - sum(job.end - job.start for job in todo)
    if done:
        progress(stage, done)


class Worker:
    """Does jobs, one after another."""

    def __init__(
        self, spec: ReplaySpec, selection: Selection, folder: Path, null: Null | None = None
    ) -> None:
        self._spec = spec
        self._selection = selection
        self._work = Work(folder, spec.block)
        self._models = Models(spec.resources, null)
        self._source = Source(spec, selection)
        # One loop for all jobs, that the source's connection outlives each.
        self._loop = asyncio.Runner()
        self._wanted: dict[Place, list[tuple[int, int]]] = {}
        for item in selection.inputs:
            spans = self._wanted.setdefault((item.topic, item.partition), [])
            spans.append((item.start, item.end))

    def do(self, kind: str, job: Job, seen: Horizon | None) -> Job:
        """Do one and keep it."""
        with _collected_afterwards():
            if kind == "sort":
                self._loop.run(self._sort(job))
            else:
                self._loop.run(self._replay(job, seen or Horizon()))
        return job

    async def _sort(self, job: Job) -> None:
        sorter = Sorter(self._spec, job, self._wanted)
        async with aclosing(self._source.lists(job)) as lists:
            async for records in lists:
                sorter.take(records)
        self._work.keep_sorted(sorter.found, sorter.entries)

    async def _replay(self, job: Job, seen: Horizon) -> None:
        block = BlockReplay(
            self._spec, self._selection, seen, self._models, job,
            lambda beside: self._work.entries(job, beside),
        )  # fmt: skip
        self._work.keep_done(await block.run(self._source.lists(job)))

    def close(self) -> None:
        """Disconnect and close the models."""
        with self._loop:
            self._loop.run(self._aclose())

    async def _aclose(self) -> None:
        await self._source.aclose()
        await self._models.aclose()


@contextmanager
def _collected_afterwards() -> Iterator[None]:
    """No cyclic garbage is looked for while a job runs: its records make none, and looking at all
    of a block's objects again and again takes a quarter of the time. A job bounds what is kept."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()
            gc.collect(1)


_worker: Worker | None = None


def _start(spec: ReplaySpec, selection: Selection, folder: Path, parent: int) -> None:
    global _worker
    die_with_parent()
    if os.getppid() != parent:
        os._exit(1)  # It ended before it could be watched.
    _worker = Worker(spec, selection, folder)
    Finalize(None, _worker.close, exitpriority=0)


def _do(kind: str, job: Job, seen: Horizon | None) -> Job | tuple[str, str]:
    """The job when it is done; else the class and the text of the error, since not every error
    survives the way between processes."""
    assert _worker is not None  # noqa: S101 - _start made it
    try:
        return _worker.do(kind, job, seen)
    except AresError as error:
        return type(error).__name__, str(error)


Run = Callable[[str, Sequence[Job], Horizon | None], Iterator[Job]]


@contextmanager
def _workers(
    spec: ReplaySpec, selection: Selection, folder: Path, workers: int, null: Null | None
) -> Iterator[Run]:
    """Does jobs in so many processes; with one worker, here."""
    if workers == 1 or null is not None:
        worker = Worker(spec, selection, folder, null)
        try:
            yield lambda kind, jobs, seen: (worker.do(kind, job, seen) for job in jobs)
        finally:
            worker.close()
        return
    pool = ProcessPoolExecutor(
        workers,
        mp_context=multiprocessing.get_context("spawn"),
        initializer=_start,
        initargs=(spec, selection, folder, os.getpid()),
    )
    try:
        yield lambda kind, jobs, seen: _spread(pool, workers, kind, jobs, seen)
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _spread(
    pool: ProcessPoolExecutor, workers: int, kind: str, jobs: Sequence[Job], seen: Horizon | None
) -> Iterator[Job]:
    waiting = iter(jobs)
    running: set[Future[Job | tuple[str, str]]] = set()
    try:
        while True:
            for job in waiting:
                running.add(pool.submit(_do, kind, job, seen))
                if len(running) >= workers * AHEAD:
                    break
            if not running:
                return
            finished, running = wait(running, return_when=FIRST_COMPLETED)
            for future in finished:
                found = future.result()
                if isinstance(found, tuple):
                    raise _error(*found)
                yield found
    except BrokenProcessPool:
        raise ResourceError(
            "a worker ended, perhaps for want of memory; start again, with fewer workers: what is "
            "done is kept"
        ) from None


def _error(name: str, text: str) -> AresError:
    kind: type[AresError] = getattr(errors, name, AresError)
    error = kind.__new__(kind)
    Exception.__init__(error, text)
    return error
