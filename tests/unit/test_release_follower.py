"""Which announced releases come into use, when they are refused, and what is told of it."""

import asyncio
import dataclasses
from collections.abc import AsyncIterator, Callable

import pytest

from ares_stream.errors import BrokerError, IntegrityError, TopicError
from ares_stream.records.release import Release, ReleaseState
from ares_stream.services.release_follower import ReleaseFollower
from ares_stream.streaming.records import InboundRecord
from tests.support.failures import DAY

ONE, TWO, THREE = ("1" * 64, "2" * 64, "3" * 64)


def announced(digest: str, offset: int = 0, **changed: str) -> InboundRecord:
    release = Release(
        model="reward",
        kind="reward",
        digest=digest,
        uri="file:///models",
        state=ReleaseState.ACTIVE,
        changed_at=DAY,
        changed_by="anna",
    ).model_copy(update=changed)
    return record(release.encode(), offset)


def record(value: bytes | None, offset: int = 0) -> InboundRecord:
    return InboundRecord(
        topic="releases",
        partition=0,
        offset=offset,
        timestamp_ms=0,
        key=b"reward",
        value=value,
        headers=(),
    )


class Service:
    """A service with one model, which refuses what `refuses` says for so many times."""

    def __init__(self, refuses: dict[str, int] | None = None) -> None:
        self.in_use = {"reward": ONE}
        self.tried: list[str] = []
        self.told: list[str] = []
        self.waiting: list[int] = []
        self.records: asyncio.Queue[InboundRecord | Exception] = asyncio.Queue()
        self.follows = 0
        self._refuses = dict(refuses or {})
        self._changed = asyncio.Event()
        self.follower = ReleaseFollower(
            self._follow, lambda: self.in_use, self._swap, self, pauses=(0.0,)
        )

    async def _follow(self) -> AsyncIterator[InboundRecord]:
        self.follows += 1
        while True:
            item = await self.records.get()
            if isinstance(item, Exception):
                raise item
            yield item

    async def _swap(self, release: Release) -> None:
        self.tried.append(release.digest)
        self._changed.set()
        await asyncio.sleep(0)
        if self._refuses.get(release.digest, 0):
            self._refuses[release.digest] -= 1
            raise IntegrityError("its files are not there yet")
        self.in_use[release.model] = release.digest

    def on_refused(self, release: Release | None, offset: int, error: Exception) -> None:
        self.told.append(f"{offset} {error}")
        self._changed.set()

    def on_unfollowed(self, error: Exception) -> None:
        self.told.append(f"unfollowed {error}")
        self._changed.set()

    def on_waiting(self, models: int) -> None:
        self.waiting.append(models)
        self._changed.set()

    async def until(self, condition: Callable[[], bool]) -> None:
        async with asyncio.timeout(10):
            while not condition():
                self._changed.clear()
                await self._changed.wait()

    async def follows_until(
        self, condition: Callable[[], bool], *items: InboundRecord | Exception
    ) -> None:
        for item in items:
            self.records.put_nowait(item)
        task = asyncio.create_task(self.follower.run())
        try:
            await self.until(condition)
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)


async def test_a_refused_release_is_tried_again_until_it_is_in_use() -> None:
    service = Service({TWO: 3})
    await service.follows_until(
        lambda: service.in_use["reward"] == TWO and service.waiting[-1:] == [0],
        announced(TWO, offset=7),
    )
    assert service.tried == [TWO] * 4
    assert service.told == ["7 its files are not there yet"] * 3
    assert service.follower.notes() == ()


async def test_what_is_not_in_use_is_told_with_its_reason_and_the_number_of_tries() -> None:
    service = Service({TWO: 10**6})
    await service.follows_until(lambda: len(service.tried) > 4, announced(TWO))
    (note,) = service.follower.notes()
    assert note.startswith(f"release {TWO[:12]} of reward is not in use after ")
    assert note.endswith("tries: its files are not there yet")
    assert max(service.waiting) == 1


async def test_a_later_announcement_takes_the_place_of_a_refused_one() -> None:
    service = Service({TWO: 10**6})
    await service.follows_until(
        lambda: service.in_use["reward"] == THREE, announced(TWO), announced(THREE)
    )
    assert service.follower.notes() == ()


async def test_a_roll_back_to_what_is_in_use_ends_the_tries() -> None:
    service = Service({TWO: 10**6})

    def rolled_back() -> bool:
        if service.tried:
            service.records.put_nowait(announced(ONE))
        return bool(service.tried) and service.waiting[-1:] == [0]

    await service.follows_until(rolled_back, announced(TWO))
    assert service.in_use == {"reward": ONE}
    assert service.follower.notes() == ()


@pytest.mark.parametrize("error", [TopicError("missing"), BrokerError("away"), OSError("full")])
async def test_a_topic_that_cannot_be_read_is_told_and_read_again(error: Exception) -> None:
    service = Service()
    await service.follows_until(
        lambda: service.in_use["reward"] == TWO, error, error, announced(TWO)
    )
    assert service.follows == 3
    assert service.told == [f"unfollowed {error}"] * 2
    assert service.follower.notes() == ()


async def test_an_active_release_under_another_key_is_named_and_the_first_one_stays() -> None:
    service = Service()
    beside = dataclasses.replace(announced(THREE, offset=5), key=b"reward@" + THREE.encode())
    await service.follows_until(
        lambda: service.in_use["reward"] == TWO, beside, announced(TWO, offset=6)
    )
    assert service.tried == [TWO]
    assert service.told == [
        f"5 key: release {THREE[:12]} is active under a key that is not its model's name"
    ]


@pytest.mark.parametrize("state", [ReleaseState.REJECTED, ReleaseState.ROLLED_BACK])
@pytest.mark.parametrize("key", [b"reward@" + TWO.encode(), b"reward"])
async def test_what_was_rejected_or_taken_back_does_not_come_into_use_by_being_called_active(
    state: ReleaseState, key: bytes
) -> None:
    service = Service()
    ended = dataclasses.replace(announced(TWO, offset=4, state=state), key=key)
    await service.follows_until(lambda: bool(service.told), ended, announced(TWO, offset=5))
    assert service.tried == []
    assert service.told[0].startswith(
        f"5 state: release {TWO[:12]} is announced as active, and as {state.value} since"
    )
    (note,) = service.follower.notes()
    assert "is not in use after" in note
    # Another release, or the deletion of what contradicted it, ends that.
    await service.follows_until(
        lambda: service.in_use["reward"] == THREE, announced(THREE, offset=6)
    )
    deleted = dataclasses.replace(record(None, 7), key=key)
    await service.follows_until(
        lambda: service.in_use["reward"] == TWO, deleted, announced(TWO, offset=8)
    )
    assert service.follower.notes() == ()


async def test_records_that_are_no_release_are_named_and_passed_over() -> None:
    service = Service()
    await service.follows_until(
        lambda: service.in_use["reward"] == TWO,
        record(b"{not json", offset=4),
        record(None, offset=5),
        announced(THREE, model="another"),
        announced(THREE, kind="policy"),
        announced(THREE, state=ReleaseState.CANDIDATE),
        announced(TWO, offset=8),
    )
    assert service.tried == [TWO]
    assert [line.split()[0] for line in service.told] == ["4"]
