"""Creating and describing topics: the I/O behind `ares topics`."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from typing import Any, Final

from aiokafka.admin import AIOKafkaAdminClient, NewTopic
from aiokafka.admin.config_resource import ConfigResource, ConfigResourceType
from aiokafka.errors import (
    KafkaConnectionError,
    KafkaError,
    NodeNotReadyError,
    TopicAlreadyExistsError,
    TopicAuthorizationFailedError,
    for_code,
)

from ares_stream.errors import BrokerError, TopicError
from ares_stream.records.topics import ActualTopic, TopicSpec
from ares_stream.streaming.client import ExistingTopics
from ares_stream.streaming.connection import KafkaConnection
from ares_stream.streaming.faults import client_faults, explained, forbidden, missing_topics
from ares_stream.streaming.topic_ids import nodes_of

ADMIN_SECONDS: Final = 30.0
"""Bounds a whole command: aiokafka waits for ever for a controller that never answers."""
POLL_SECONDS: Final = 0.05
_UNKNOWN_TOPIC: Final = 3
_NOTHING: Final[Mapping[str, Any]] = {"error_code": _UNKNOWN_TOPIC}
_FORBIDDEN_TOPIC: Final = TopicAuthorizationFailedError.errno


class _Admin(AIOKafkaAdminClient):  # type: ignore[misc]
    """What any broker may answer is asked of those that are there: aiokafka draws one, and fails
    where that one is down."""

    async def _send_request(self, request: Any, node_id: int | None = None) -> Any:
        failure: KafkaError = KafkaError("no broker is known")
        for node in nodes_of(self._client) if node_id is None else [node_id]:
            try:
                return await super()._send_request(request, node)
            except (NodeNotReadyError, KafkaConnectionError) as error:
                failure = error
        raise failure


@asynccontextmanager
async def _admin(connection: KafkaConnection, seconds: float) -> AsyncIterator[_Admin]:
    client = _Admin(**connection.client_arguments())
    try:
        with client_faults():
            async with asyncio.timeout(seconds):
                await client.start()
                yield client
    except TimeoutError:
        raise BrokerError(
            f"Kafka at {connection.bootstrap} did not answer within {seconds:.0f} s"
        ) from None
    except (KafkaError, OSError) as error:
        raise explained(error, connection.bootstrap, on_topic="Describe") from error
    finally:
        with suppress(KafkaError, OSError, TimeoutError), client_faults():
            await client.close()


async def create_topics(
    connection: KafkaConnection, wanted: Sequence[TopicSpec], *, seconds: float = ADMIN_SECONDS
) -> list[str]:
    """Create the topics that do not exist; return the names of those created.

    A topic that exists is left as it is, however it differs: `ares topics check` says how.
    Returns when every topic can be read and written. Raises TopicError naming the topic that
    the broker refuses, BrokerError when it does not answer.
    """
    new = [
        NewTopic(spec.name, spec.partitions, spec.replication, topic_configs=dict(spec.config))
        for spec in wanted
    ]
    created: list[str] = []
    async with _admin(connection, seconds) as client:
        answer = await client.create_topics(new)
        codes = ((name, code) for name, code, *_ in answer.topic_errors)
        _refuse_forbidden(connection.bootstrap, codes, "Create")
        for name, code, *detail in answer.topic_errors:
            error = for_code(code)
            if code == 0:
                created.append(name)
            elif error is not TopicAlreadyExistsError:
                reason = detail[0] if detail and detail[0] else error.__name__
                raise TopicError(f"{name}: cannot be created: {reason}")
        # Creation returns before every broker knows the topic: a client that asks too early
        # is told that it does not exist.
        names = [spec.name for spec in wanted]
        while await _absent(client, connection.bootstrap, names, anywhere=True):  # noqa: ASYNC110
            await asyncio.sleep(POLL_SECONDS)
    return created


async def count_brokers(connection: KafkaConnection, *, seconds: float = ADMIN_SECONDS) -> int:
    """How many brokers the cluster has now. Raises BrokerError when none answers."""
    async with _admin(connection, seconds) as client:
        cluster = await client.describe_cluster()
    return len(cluster["brokers"])


async def describe_topics(
    connection: KafkaConnection, names: Iterable[str], *, seconds: float = ADMIN_SECONDS
) -> Mapping[str, ActualTopic]:
    """What exists of the named topics, by name; a missing topic is not in the answer."""
    async with _admin(connection, seconds) as client:
        described = await _described(client, list(names))
        codes = ((topic["topic"], topic["error_code"]) for topic in described)
        _refuse_forbidden(connection.bootstrap, codes)
        found = {
            topic["topic"]: topic["partitions"]
            for topic in described
            if topic["error_code"] != _UNKNOWN_TOPIC
        }
        configs: dict[str, dict[str, str]] = {}
        if found:
            resources = [ConfigResource(ConfigResourceType.TOPIC, name) for name in found]
            for answer in await client.describe_configs(resources):
                for code, reason, _, name, entries in answer.resources:
                    _refuse_forbidden(connection.bootstrap, [(name, code)], "DescribeConfigs")
                    if code:
                        raise TopicError(f"{name}: cannot be described: {reason}")
                    configs[name] = {entry[0]: entry[1] or "" for entry in entries}
    return {
        name: ActualTopic(
            partitions=len(partitions),
            replication=max((len(item["replicas"]) for item in partitions), default=0),
            config=configs[name],
        )
        for name, partitions in found.items()
    }


async def count_partitions(
    connection: KafkaConnection, names: Iterable[str], *, seconds: float = ADMIN_SECONDS
) -> Mapping[str, int]:
    """How many partitions each topic has. Raises TopicError naming every topic that is missing."""
    wanted = sorted(set(names))
    async with _admin(connection, seconds) as client:
        if absent := await _absent(client, connection.bootstrap, wanted):
            raise missing_topics(connection.bootstrap, absent)
        topics = await _described(client, wanted)
    return {topic["topic"]: len(topic["partitions"]) for topic in topics}


async def message_limits(
    connection: KafkaConnection, names: Iterable[str], *, seconds: float = ADMIN_SECONDS
) -> Mapping[str, int]:
    """max.message.bytes of each topic, of those whose configuration this client may read."""
    limits: dict[str, int] = {}
    async with _admin(connection, seconds) as client:
        resources = [ConfigResource(ConfigResourceType.TOPIC, name) for name in sorted(set(names))]
        for answer in await client.describe_configs(resources):
            for code, _, _, name, entries in answer.resources:
                found = {entry[0]: entry[1] for entry in entries}
                if not code and (limit := found.get("max.message.bytes")):
                    limits[name] = int(limit)
    return limits


def _refuse_forbidden(
    where: str, codes: Iterable[tuple[str, int]], right: str = "Describe"
) -> None:
    """Raise AccessError for topics that this user may not see: they may exist or not."""
    if hidden := sorted(name for name, code in codes if code == _FORBIDDEN_TOPIC):
        raise forbidden(where, f"{right} on topic {', '.join(hidden)}")


async def _absent(
    client: _Admin, where: str, names: Sequence[str], *, anywhere: bool = False
) -> list[str]:
    """Topics that cannot be used, or (`anywhere`) of which some broker does not know yet; another
    reason than absence stands behind the name."""
    topics = await _described(client, names, anywhere=anywhere)
    _refuse_forbidden(where, ((topic["topic"], topic["error_code"]) for topic in topics))
    return sorted(
        topic["topic"]
        if topic["error_code"] == _UNKNOWN_TOPIC
        else f"{topic['topic']} ({for_code(topic['error_code']).__name__})"
        for topic in topics
        if topic["error_code"] != 0
    )


async def _described(
    client: _Admin, names: Sequence[str], *, anywhere: bool = False
) -> list[dict[str, Any]]:
    """The best that a broker says of each topic, or (`anywhere`) the worst. One that is down is
    not waited for, and what one does not know is asked of the others: who comes back hears late of
    what is new."""
    found: dict[str, dict[str, Any]] = {}
    failure: Exception | None = None
    for node in nodes_of(client._client):
        wanted = [name for name in names if anywhere or found.get(name, _NOTHING)["error_code"]]
        if not wanted:
            break
        try:
            answer = await client._send_request(ExistingTopics(wanted), node)
        except KafkaError as error:
            failure = error
            continue
        for topic in answer.to_object()["topics"]:
            known = found.get(topic["topic"], _NOTHING)
            if known is _NOTHING or bool(topic["error_code"]) == anywhere:
                found[topic["topic"]] = topic
    if failure is not None and len(found) < len(names):
        raise failure
    return list(found.values())
