"""What every Kafka client of this process does otherwise than aiokafka has it, since none takes it
as an argument: asking about topics makes none, a refused login is told and not repeated, a
connection that is let go is closed, a producer that is given up logs no error that was told, a
group's coordinator that cannot answer is not taken for a group without commits.
Imported with the first client, once.
"""

from __future__ import annotations

import asyncio
import json
import socket
import ssl
from collections.abc import Awaitable, Iterator, Mapping
from typing import Any, Final

import aiokafka.admin.client
import aiokafka.client
import aiokafka.consumer.group_coordinator
import aiokafka.producer.message_accumulator
import aiokafka.producer.transaction_manager
from aiokafka.conn import AIOKafkaConnection, CloseReason, OAuthAuthenticator
from aiokafka.errors import (
    BrokerResponseError,
    IllegalSaslStateError,
    InvalidProducerEpoch,
    KafkaError,
    SaslAuthenticationFailed,
    UnsupportedSaslMechanismError,
    kafka_errors,
)
from aiokafka.protocol.metadata import MetadataRequest

from ares_stream.errors import LoginError
from ares_stream.files import Renewed
from ares_stream.streaming.committed import committed_offsets
from ares_stream.streaming.listener import spoken_at
from ares_stream.streaming.tokens import FileToken, TokenRefused

NO_TLS: Final = ("WRONG_VERSION_NUMBER", "HTTP_REQUEST", "UNEXPECTED_MESSAGE")
"""What OpenSSL says of an answer that is no TLS."""
OF_FILES: Final = "ssl_context", "sasl_plain_password"
"""Arguments of a client that may be renewed while it lives."""
PRODUCER_FENCED: Final = 90
"""Kafka's code."""
UNNAMED: Final[Mapping[int, tuple[str, bool]]] = {
    74: ("FencedLeaderEpoch", True),
    75: ("UnknownLeaderEpoch", True),
    76: ("UnsupportedCompressionType", False),
    77: ("StaleBrokerEpoch", False),
    78: ("OffsetNotAvailable", True),
    80: ("PreferredLeaderNotAvailable", True),
    81: ("GroupMaxSizeReached", False),
    82: ("FencedInstanceId", False),
    87: ("InvalidRecord", False),
    88: ("UnstableOffsetCommit", True),
    89: ("ThrottlingQuotaExceeded", True),
    91: ("ResourceNotFound", False),
    100: ("UnknownTopicId", True),
    120: ("TransactionAbortable", False),
}
"""Codes of Kafka's that aiokafka does not know, with whether asking again helps: a person would be
told of an unknown error. https://kafka.apache.org/protocol#protocol_error_codes"""
NOBODY_THERE: Final = (ConnectionRefusedError, socket.gaierror)
"""Errors of a port that nobody listens on, which need no question what it speaks."""
CLOSE_SECONDS: Final = 1.0
"""For a connection to close its side; TLS says goodbye first."""
OF_CERTIFICATES: Final = (
    "CERTIFICATE_REQUIRED",
    "BAD_CERTIFICATE",
    "CERTIFICATE_EXPIRED",
    "CERTIFICATE_REVOKED",
    "CERTIFICATE_UNKNOWN",
    "UNSUPPORTED_CERTIFICATE",
    "UNKNOWN_CA",
    "HANDSHAKE_FAILURE",
    "ACCESS_DENIED",
)
"""Alerts of a broker that does not take the certificate of this client, or wants one."""


class ExistingTopics(MetadataRequest):  # type: ignore[misc]
    """A metadata request without creation. aiokafka asks with Kafka's default, by which a broker
    with auto.create.topics.enable makes every topic that is asked about."""

    def __init__(self, topics: list[str] | None = None) -> None:
        super().__init__(topics, allow_auto_topic_creation=False)


class _Bearer(OAuthAuthenticator):  # type: ignore[misc]
    """A broker answers a bad token with a JSON document (RFC 7628, section 3.2.2), which aiokafka
    takes for a welcome."""

    async def step(self, payload: bytes | None) -> Any:
        if payload:
            try:
                status = str(json.loads(payload)["status"])
            except (ValueError, KeyError, TypeError, RecursionError):
                status = "no reason"
            raise SaslAuthenticationFailed(status)
        return await super().step(payload)


class Connection(AIOKafkaConnection):  # type: ignore[misc]
    """A connection to one broker.

    aiokafka takes a refused login for a broker that is away, and logs what it said. Here a
    client's first connection raises LoginError instead, which no caller waits for; a later one
    fails as before, with the reason: a password may be changed while a service runs.
    """

    async def connect(self) -> Any:
        """See AIOKafkaConnection. Raises LoginError where a person must change a setting."""
        # Only the first connection of a client, which learns of the cluster, has no callback.
        first = self._on_close_cb is None
        try:
            return await super().connect()
        except (KafkaError, OSError, TimeoutError) as error:
            reason = self._refusal(error)
            if reason is None and first:
                reason = await self._other_protocol(error)
            if reason is None:
                raise
            # Whoever is told ends soon, and a transport that still closes would be left behind.
            if self._protocol is not None:
                await asyncio.wait([self._closed_fut], timeout=CLOSE_SECONDS)
            if first:
                raise LoginError(reason) from error
            raise KafkaError(reason) from error

    def send(self, request: Any, expect_response: bool = True) -> Any:
        """See AIOKafkaConnection. The first answer that a client needs is awaited as the
        connection is: a broker that wants a login ends it only then."""
        sent = super().send(request, expect_response)
        if self._on_close_cb is None and isinstance(request, MetadataRequest):
            return self._first_answer(sent)
        return sent

    async def _first_answer(self, sent: Awaitable[Any]) -> Any:
        try:
            return await sent
        except (KafkaError, TimeoutError) as error:
            reason = await self._other_protocol(error)
            if reason is None:
                raise
            self.close()
            raise LoginError(reason) from error
        except asyncio.CancelledError:
            # aiokafka lets go of what it asks first and is told to stop: it would stay open.
            self.close()
            raise

    async def _other_protocol(self, error: BaseException) -> str | None:
        """That the port speaks another protocol than this connection, where it says so."""
        if any(isinstance(cause, NOBODY_THERE) for cause in _causes(error)):
            return None
        spoken = await spoken_at(self._host, self._port)
        if spoken is None or spoken == self._security_protocol:
            return None
        return (
            f"kafka.protocol: Kafka at {self._host}:{self._port} speaks {spoken} on this port, not "
            f"{self._security_protocol}"
        )

    def authenticator_oauth(self) -> _Bearer:
        """See AIOKafkaConnection."""
        return _Bearer(sasl_oauth_token_provider=self._sasl_oauth_token_provider)

    def connected(self) -> bool:
        """See AIOKafkaConnection. One that its broker has ended is closed: the client lets go of it
        next, and an exception that is kept, such as one in a log, would hold its socket."""
        if super().connected():
            return True
        if self._writer is not None:
            self.close(reason=CloseReason.CONNECTION_BROKEN)
        return False

    def __del__(self, *_: object) -> None:
        # aiokafka lets one go unclosed when its client is cancelled while it connects.
        if self._writer is not None and not self._loop.is_closed():
            self._on_close_cb = None
            self.close()

    def _refusal(self, error: BaseException) -> str | None:
        """Why this connection will be refused again: the setting, and what the broker said."""
        where = f"{self._host}:{self._port}"
        for cause in _causes(error):
            if isinstance(cause, TokenRefused):
                return str(cause)
            if isinstance(cause, SaslAuthenticationFailed):
                said = cause.args[0] if cause.args and cause.args[0] else "nothing more"
                return f"{self._login()}: Kafka at {where} refuses the login, and says: {said}"
            if isinstance(cause, UnsupportedSaslMechanismError):
                return f"kafka.mechanism: Kafka at {where} does not offer {self._sasl_mechanism}"
            if isinstance(cause, IllegalSaslStateError):
                return f"kafka.protocol: Kafka at {where} takes no login on this port"
            if isinstance(cause, ssl.SSLCertVerificationError):
                return (
                    f"kafka.ca_file: the certificate of Kafka at {where} is not trusted: "
                    f"{cause.verify_message}"
                )
            if isinstance(cause, ssl.SSLError):
                return self._refusal_of_tls(where, cause.reason or "")
        return None

    @staticmethod
    def _refusal_of_tls(where: str, reason: str) -> str | None:
        if any(reason.endswith(name) for name in NO_TLS):
            return f"kafka.protocol: Kafka at {where} does not speak TLS on this port"
        if any(reason.endswith(name) for name in OF_CERTIFICATES):
            return (
                f"kafka.certificate_file, kafka.key_file: Kafka at {where} refuses this client's "
                f"certificate, or misses one: {reason.lower().replace('_', ' ')}"
            )
        return None

    def _login(self) -> str:
        """The settings that it logs in with."""
        if self._sasl_mechanism != "OAUTHBEARER":
            return f"kafka.username, kafka.password_file ({self._sasl_mechanism})"
        if isinstance(self._sasl_oauth_token_provider, FileToken):
            return "kafka.token_file"
        return "kafka.token_endpoint"


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


async def create_connection(host: str, port: int, **arguments: Any) -> Connection:
    """As aiokafka's `create_conn`, with what the files of certificates and password hold now."""
    for name in OF_FILES:
        if isinstance(value := arguments.get(name), Renewed):
            arguments[name] = await asyncio.to_thread(value.value)
    connection = Connection(host, port, **arguments)
    await connection.connect()
    return connection


def looked_at() -> asyncio.Future[Any]:
    """As aiokafka's `create_future`, for a producer's own futures. When it is fenced it gives its
    error to one that nobody has, beside those that are waited for: asyncio would log it, with a
    traceback, when the garbage collector comes by."""
    future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
    future.add_done_callback(lambda done: None if done.cancelled() else done.exception())
    return future


# Brokers say so of a producer whose name another has taken; aiokafka knows the older code alone,
# and whoever was fenced would take the name back.
kafka_errors.setdefault(PRODUCER_FENCED, InvalidProducerEpoch)
for _code, (_name, _retriable) in UNNAMED.items():
    _kind = type(_name, (BrokerResponseError,), {"errno": _code, "retriable": _retriable})
    kafka_errors.setdefault(_code, _kind)
aiokafka.client.MetadataRequest = ExistingTopics
aiokafka.admin.client.MetadataRequest = ExistingTopics
aiokafka.client.create_conn = create_connection
aiokafka.consumer.group_coordinator.GroupCoordinator._do_fetch_commit_offsets = committed_offsets
aiokafka.producer.transaction_manager.create_future = looked_at
aiokafka.producer.message_accumulator.create_future = looked_at
