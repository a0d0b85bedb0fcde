"""Trainings side by side: each in a process of its own with one thread, so that what they give
does not depend on how many run at once. Their progress comes back as steps."""

from __future__ import annotations

import multiprocessing
import os
import queue
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from ares_stream.processes.parent import die_with_parent

_POLL_SECONDS = 0.2


@dataclass(frozen=True, slots=True)
class Step:
    """Progress of one job: `done` of `total` steps of a stage."""

    seed: int
    method: str
    stage: str
    done: int
    total: int


Report = Callable[[int, str, str, int, int], None]
"""Called in a job with the fields of a Step."""
_steps: Any = None


@contextmanager
def worker_pool(workers: int | None) -> Iterator[tuple[ProcessPoolExecutor, Any]]:
    """Processes for `run_jobs`, one per core by default."""
    context = multiprocessing.get_context("spawn")
    steps = context.Queue()
    count = workers or len(os.sched_getaffinity(0))
    pool = ProcessPoolExecutor(count, context, initializer=_start_worker, initargs=(steps,))
    try:
        yield pool, steps
    finally:
        pool.shutdown(cancel_futures=True)


def run_jobs(
    pool: tuple[ProcessPoolExecutor, Any],
    jobs: Sequence[tuple[Any, ...]],
    progress: Callable[[Step], None] | None,
) -> list[Any]:
    """What each job (a function and its arguments) gives, in order; the function gets a Report
    first. The first error ends all."""
    executor, steps = pool
    futures: list[Future[Any]] = [executor.submit(_call, job) for job in jobs]
    pending = set(futures)
    while pending:
        done, pending = wait(pending, timeout=_POLL_SECONDS)
        for future in done:
            future.result()
        while True:
            try:
                step = steps.get_nowait()
            except queue.Empty:
                break
            if progress is not None:
                progress(step)
    return [future.result() for future in futures]


def _start_worker(steps: Any) -> None:
    import torch
    from transformers.utils import logging as untyped

    die_with_parent()
    logging: Any = untyped
    global _steps
    _steps = steps
    torch.set_num_threads(1)
    logging.disable_progress_bar()  # One bar, the benchmark's own.


def _call(job: tuple[Any, ...]) -> Any:
    function, *arguments = job
    return function(lambda *step: _steps.put(Step(*step)), *arguments)
