"""What the Kafka client raises while a broker goes away or forbids something, in one form."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Final

from aiokafka.errors import (
    ClusterAuthorizationFailedError,
    GroupAuthorizationFailedError,
    InvalidSessionTimeoutError,
    InvalidTimestampError,
    InvalidTransactionTimeout,
    KafkaConnectionError,
    KafkaError,
    LeaderNotAvailableError,
    NodeNotReadyError,
    TopicAuthorizationFailedError,
    TransactionalIdAuthorizationFailed,
)
from aiokafka.structs import TopicPartition

from ares_stream.errors import AccessError, BrokerError, LimitError, StreamError, TopicError

FORBIDDEN: Final = (
    TopicAuthorizationFailedError,
    ClusterAuthorizationFailedError,
    GroupAuthorizationFailedError,
    TransactionalIdAuthorizationFailed,
)

LIMITS: Final[Mapping[type[KafkaError], str]] = {
    InvalidTransactionTimeout: "refuses transactions that may take 30 s: raise its "
    "transaction.max.timeout.ms to 30000 at least",
    InvalidSessionTimeoutError: "refuses the session time-out of group members, which for the "
    "scorer is scorer.processing.session_seconds and elsewhere 30 s: it must lie between the "
    "broker's group.min.session.timeout.ms and group.max.session.timeout.ms",
}
"""Refusals that last until a person changes a setting, here or there."""

TIMES: Final = (
    "refuses the time of a record: this machine's clock or the broker's is wrong, or the topic's "
    "message.timestamp.before.max.ms or message.timestamp.after.max.ms is too small"
)
"""Of INVALID_TIMESTAMP; a clock may be set right."""


def explained(
    error: BaseException,
    where: str,
    *,
    on_topic: str = "Read",
    on_group: str = "Read",
    name: str = "",
) -> StreamError:
    """The error for a person: AccessError with the right that the broker at `where` misses,
    LimitError with the broker's limit, else BrokerError. `on_topic` and `on_group` say what the
    caller does with them; `name` is the resource, for where the client does not say it."""
    if (limit := LIMITS.get(type(error))) is not None:
        return LimitError(f"Kafka at {where} {limit}")
    if not isinstance(error, FORBIDDEN):
        return BrokerError(f"Kafka at {where}: {said(error)}")
    if offsets_of := _partitions(error):
        # Only the commit of offsets names partitions; in a transaction as well it needs Read.
        right = f"Read on topic {offsets_of}"
    elif isinstance(error, TopicAuthorizationFailedError):
        right = f"{on_topic} on topic {_names(error, name)}"
    elif isinstance(error, GroupAuthorizationFailedError):
        right = f"{on_group} on group {_names(error, name)}"
    elif isinstance(error, TransactionalIdAuthorizationFailed):
        right = f"Write on transactional id {_names(error, name)}"
    elif on_topic == "Write":
        right = f"{on_topic} on topic {name}"
    else:
        right = "what it asks of the cluster"
    return forbidden(where, right)


def said(error: BaseException) -> str:
    """For a person: the error's kind and what it says, each once. An error of the client says its
    kind itself, and of a bootstrap that failed it shows a list of addresses."""
    if isinstance(error, KafkaConnectionError) and "Unable to bootstrap" in str(error):
        return "no broker answers there"
    if isinstance(error, NodeNotReadyError):
        return (
            f"{error} It is down, cannot be reached from here at the address that it advertises "
            "(advertised.listeners), or takes no more connections (max.connections.per.ip)"
        )
    if isinstance(error, InvalidTimestampError):
        return TIMES
    if isinstance(error, LeaderNotAvailableError) and error.args:
        return without_leader(error.args[0])
    if isinstance(error, KafkaError):
        return str(error)
    return f"{type(error).__name__}: {error}".rstrip(": ")


def without_leader(partitions: Iterable[TopicPartition]) -> str:
    """Which partitions nobody can read or write now, and why."""
    names = ", ".join(f"{item.topic}-{item.partition}" for item in partitions)
    return f"no broker that holds {names} is up (no leader)"


def first_refusal(errors: Iterable[BaseException | None]) -> Exception | None:
    """The first that says that the broker forbids something, or lies beyond its limits: what else
    fails then follows from it."""
    lasting = (*FORBIDDEN, *LIMITS)
    return next((error for error in errors if isinstance(error, lasting)), None)


def missing_topics(where: str, names: Iterable[str]) -> TopicError:
    """The topics are not there, or no longer."""
    return TopicError(
        f"missing on {where}: {', '.join(names)}; create them with `ares topics create`"
    )


def forbidden(where: str, right: str) -> AccessError:
    """The broker does not allow the right, such as "Read on topic x"."""
    return AccessError(
        f"Kafka at {where} forbids this user: {right}; `ares topics acls` prints what each "
        "service must be allowed"
    )


def _partitions(error: BaseException) -> str:
    """Topics of the partitions that the error names; nothing where it names none."""
    found = error.args[0] if error.args else None
    named = [found] if isinstance(found, TopicPartition) else found
    if isinstance(named, str) or not isinstance(named, Iterable):
        return ""
    return ", ".join(sorted({item.topic for item in named if isinstance(item, TopicPartition)}))


def _names(error: BaseException, name: str) -> str:
    """What the error names: one, several, or nothing."""
    found = error.args[0] if error.args else name
    if isinstance(found, str):
        return found or "(the client does not say which)"
    if isinstance(found, Iterable):
        return ", ".join(sorted(map(str, found)))
    return name or str(found)


@contextmanager
def client_faults() -> Iterator[None]:
    """Turn what escapes from inside the client library into KafkaError.

    While a connection dies the library lets errors of its own bookkeeping through, such as
    KeyError (aiokafka#1098), and cancels futures that a caller waits for: a CancelledError
    without anybody having cancelled the task. Neither may end a service.
    """
    try:
        yield
    except asyncio.CancelledError as error:
        task = asyncio.current_task()
        if task is None or task.cancelling():
            raise
        raise KafkaError("the client gave the request up") from error
    except (KafkaError, OSError, TimeoutError):
        raise
    except Exception as error:
        if not _is_of_the_client(error):
            raise
        raise KafkaError(f"{type(error).__name__} inside the client") from error


@contextmanager
def faults_as(explain: Callable[[Exception], Exception]) -> Iterator[None]:
    """What Kafka or its client raises in the block, as `explain` says it; see `client_faults`."""
    try:
        with client_faults():
            yield
    except (KafkaError, OSError, TimeoutError) as error:
        raise explain(error) from error


def _is_of_the_client(error: Exception) -> bool:
    trace = error.__traceback__
    module = ""
    while trace is not None:
        module = trace.tb_frame.f_globals.get("__name__", "")
        trace = trace.tb_next
    return module.partition(".")[0] == "aiokafka"
