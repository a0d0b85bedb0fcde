"""The states of a partition's worker."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Sequence

import pytest
from aiokafka.errors import KafkaError
from hypothesis import given
from hypothesis import strategies as st

from ares_stream.streaming.breaker import Breaker, BreakerPolicy
from ares_stream.streaming.connection import KafkaConnection
from ares_stream.streaming.contract import ProcessorObserver, ProcessorPolicy, SessionSpec
from ares_stream.streaming.partition import (
    TRANSITIONS,
    Inflight,
    PartitionState,
    PartitionWorker,
    commit_after,
    share,
)
from ares_stream.streaming.records import InboundRecord, Outcome
from ares_stream.streaming.shared_clients import SharedClients


class Nothing:
    async def handle(self, records: Sequence[InboundRecord]) -> Sequence[Outcome]:
        return [() for _ in records]


def worker(
    inflight: Inflight | None = None,
) -> PartitionWorker:
    spec = SessionSpec(
        connection=KafkaConnection(),
        service="test",
        group="g",
        topics=("in",),
        handler=Nothing(),
        deadletter_topic="dead",
        id_prefix="p.",
        policy=ProcessorPolicy(),
        observer=ProcessorObserver(),
    )
    return PartitionWorker(
        spec,
        "in",
        3,
        breaker=Breaker(BreakerPolicy()),
        inflight=inflight or Inflight(),
        turns=asyncio.Semaphore(1),
        openings=asyncio.Semaphore(1),
        clients=SharedClients(spec.connection, 1),
        room=lambda: None,
        lost=lambda loss: None,
        size_limits={},
    )


@pytest.mark.parametrize(
    ("transaction", "wait"), [(0.0, 0.23), (0.04, 0.15), (0.0525, 0.125), (3.0, 0.125)]
)
def test_what_reading_and_a_transaction_take_is_part_of_the_commit_interval(
    transaction: float, wait: float
) -> None:
    assert commit_after(0.25, 0.02, transaction) == pytest.approx(wait)


async def test_workers_of_a_session_share_its_places_one_after_another() -> None:
    places = asyncio.Semaphore(1)
    order: list[str] = []

    async def take(name: str) -> None:
        async with share(places, 60.0):
            order.append(f"{name} begins")
            await asyncio.sleep(0)
            order.append(f"{name} ends")

    await asyncio.gather(take("first"), take("second"))
    assert order == ["first begins", "first ends", "second begins", "second ends"]
    assert not places.locked()


async def test_who_waited_long_enough_goes_without_a_place_and_gives_none_back() -> None:
    places = asyncio.Semaphore(1)
    await places.acquire()  # Another hangs on its broker.
    async with share(places, 0.001):
        assert places.locked()
    assert places.locked()


@pytest.mark.parametrize("error", [OSError, asyncio.CancelledError])
async def test_who_fails_gives_the_place_back(error: type[BaseException]) -> None:
    places = asyncio.Semaphore(1)
    with pytest.raises(error):
        async with share(places, 60.0):
            raise error
    assert not places.locked()


def test_workers_of_a_session_count_what_is_in_flight_together() -> None:
    together = Inflight()
    workers = [worker(together), worker(together)]
    for offset in range(5):
        record = InboundRecord("in", 3, offset, 0, b"k", b"v" * offset)
        workers[offset % 2].add(record)
    assert together.records == sum(item.inflight_records for item in workers) == 5
    assert together.size == sum(item.inflight_bytes for item in workers) > 0


def test_every_state_says_where_it_may_go_and_closed_is_the_end() -> None:
    assert set(TRANSITIONS) == set(PartitionState)
    assert TRANSITIONS[PartitionState.CLOSED] == frozenset()
    assert all(PartitionState.CLOSED in to for state, to in TRANSITIONS.items() if to)


def test_a_transition_that_the_table_does_not_hold_is_refused_and_changes_nothing() -> None:
    for state, allowed in TRANSITIONS.items():
        for wanted in set(PartitionState) - allowed:
            one = worker()
            one._state = state
            with pytest.raises(RuntimeError, match=f"in-3: {state.value} cannot become"):
                one._enter(wanted)
            assert one.state is state


@given(st.lists(st.sampled_from(PartitionState), max_size=12))
def test_no_way_through_the_table_leads_from_closing_back_to_open(
    wanted: list[PartitionState],
) -> None:
    one = worker()
    passed = [one.state]
    for state in wanted:
        if state in TRANSITIONS[one.state]:
            one._enter(state)
            passed.append(state)
    for before, after in itertools.pairwise(passed):
        closing = (PartitionState.CLOSING, PartitionState.CLOSED)
        assert before not in closing or after in closing


def test_a_worker_takes_the_same_transactional_id_whoever_owns_the_partition() -> None:
    assert worker()._spec.transactional_id("in", 3) == "p.test.in.3"


async def test_a_worker_that_is_closed_while_it_opens_ends_at_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It has nothing to commit, and its producer, started late, would fence the next owner's."""
    one = worker()
    opening = asyncio.Event()

    async def no_producer(self: PartitionWorker) -> None:
        opening.set()

    async def never(self: PartitionWorker) -> int:
        await asyncio.Event().wait()
        return 0

    monkeypatch.setattr(PartitionWorker, "_start_producer", no_producer)
    async with asyncio.timeout(5):
        life = asyncio.create_task(one.run(never))
        await opening.wait()
        await one.close(seconds=60)
        await life
    assert one.state is PartitionState.CLOSED


async def test_a_worker_that_is_closed_between_two_tries_to_open_ends_at_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    one = worker()
    tried = asyncio.Event()

    async def no_producer(self: PartitionWorker) -> None:
        tried.set()
        raise KafkaError("away")

    monkeypatch.setattr(PartitionWorker, "_start_producer", no_producer)
    monkeypatch.setattr("ares_stream.streaming.partition.MAX_PAUSE_SECONDS", 60.0)
    monkeypatch.setattr("ares_stream.streaming.partition.REOPEN_PAUSE_SECONDS", 60.0)

    async def never(self: PartitionWorker) -> int:
        return 0

    async with asyncio.timeout(5):
        life = asyncio.create_task(one.run(never))
        await tried.wait()
        await one.close(seconds=60)
        await life
    assert one.state is PartitionState.CLOSED
