"""What several brokers say of topics, put together."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any
from uuid import UUID

import pytest
from aiokafka.errors import KafkaError, NodeNotReadyError

from ares_stream.streaming.topic_ids import KnownTopics, known_topics

MISSING = 3
ID = UUID(int=7)


class Cluster:
    """Brokers by number: how many partitions each knows a topic to have, or how it fails."""

    def __init__(self, brokers: Mapping[int, Mapping[str, int] | Exception]) -> None:
        self._brokers = brokers
        self.cluster = self

    def brokers(self) -> list[SimpleNamespace]:
        return [SimpleNamespace(nodeId=number) for number in self._brokers]

    async def send(self, node: int, request: Any) -> SimpleNamespace:
        says = self._brokers[node]
        if isinstance(says, Exception):
            raise says
        topics: list[tuple[Any, ...]] = [
            (0, name, ID, False, [(0, k, 1, 0, [1], [1], [], {}) for k in range(says[name])])
            if name in says
            else (MISSING, name, UUID(int=0), False, [])
            for name in request._topics
        ]
        return SimpleNamespace(topics=topics)


DOWN = NodeNotReadyError("down")


@pytest.mark.parametrize(
    ("brokers", "known"),
    [
        ({1: {"a": 2}, 2: {}, 3: {}}, KnownTopics({"a": str(ID)}, {"a": 2}, ("b",))),
        ({1: {"a": 2}, 2: {"b": 1}}, KnownTopics(dict.fromkeys("ab", str(ID)), {"a": 2, "b": 1})),
        ({1: DOWN, 2: {"a": 2, "b": 1}, 3: TimeoutError()},
         KnownTopics(dict.fromkeys("ab", str(ID)), {"a": 2, "b": 1})),
        ({1: {}, 2: DOWN}, KnownTopics(absent=("a", "b"))),
        ({1: NotImplementedError()}, KnownTopics()),
    ],
)  # fmt: skip
def test_a_topic_is_there_where_one_broker_says_so_and_missing_where_none_does(
    brokers: Mapping[int, Mapping[str, int] | Exception], known: KnownTopics
) -> None:
    for _ in range(5):  # The order in which they are asked is drawn.
        assert asyncio.run(known_topics(Cluster(brokers), ["a", "b"])) == known


@pytest.mark.parametrize("brokers", [{}, {1: DOWN, 2: DOWN}])
def test_where_no_broker_answers_nothing_is_known(brokers: Mapping[int, Exception]) -> None:
    with pytest.raises(KafkaError):
        asyncio.run(known_topics(Cluster(brokers), ["a"]))


def test_of_no_topics_nobody_is_asked() -> None:
    assert asyncio.run(known_topics(Cluster({1: DOWN}), [])) == KnownTopics()
