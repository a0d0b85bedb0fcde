"""What a refused connection says, and what is no refusal."""

from __future__ import annotations

import asyncio
import gc
import re
import ssl

import aiokafka.client
import pytest
from aiokafka.conn import CloseReason
from aiokafka.errors import (
    IllegalSaslStateError,
    InvalidProducerEpoch,
    KafkaConnectionError,
    ProducerFenced,
    SaslAuthenticationFailed,
    UnsupportedSaslMechanismError,
    for_code,
)
from aiokafka.producer.transaction_manager import TransactionManager

from ares_stream.streaming import client
from ares_stream.streaming.tokens import TokenRefused


def tls(reason: str) -> ssl.SSLError:
    error = ssl.SSLError(1, reason)
    error.reason = reason
    return error


def untrusted() -> ssl.SSLCertVerificationError:
    error = ssl.SSLCertVerificationError(1, "failed")
    error.verify_message = "certificate has expired"
    return error


def caused_by(cause: Exception) -> Exception:
    error: Exception = KafkaConnectionError("closed")
    error.__cause__ = cause
    return error


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (
            SaslAuthenticationFailed("no such user"),
            r"file \(SCRAM-SHA-512\): .* no such",
        ),
        (SaslAuthenticationFailed(), "kafka.password_file .* says: nothing more"),
        (UnsupportedSaslMechanismError(), "kafka.mechanism: .* does not offer SCRAM-SHA-512"),
        (IllegalSaslStateError(), "kafka.protocol: .* no login"),
        (TokenRefused("kafka.token_file: t is empty"), "kafka.token_file: t is empty"),
        (untrusted(), "kafka.ca_file: .* certificate has expired"),
        (tls("WRONG_VERSION_NUMBER"), "kafka.protocol: .* does not speak TLS"),
        (tls("TLSV1_ALERT_UNKNOWN_CA"), "kafka.certificate_file, .*: .*alert unknown ca"),
        (caused_by(tls("TLSV13_ALERT_CERTIFICATE_REQUIRED")), "kafka.certificate_file, .*required"),
        (caused_by(ConnectionResetError()), None),
        (tls("UNEXPECTED_EOF_WHILE_READING"), None),
        (ConnectionRefusedError(), None),
    ],
)
async def test_a_refusal_names_the_setting_and_an_outage_is_none(
    error: Exception, said: str | None
) -> None:
    connection = client.Connection(
        "kafka",
        9093,
        security_protocol="SASL_SSL",
        sasl_mechanism="SCRAM-SHA-512",
        sasl_plain_username="ares",
        sasl_plain_password="hunter2",
    )
    reason = connection._refusal(error)
    if said is None:
        assert reason is None
    else:
        assert reason is not None
        assert re.search(said, reason), reason
        assert "hunter2" not in reason


def test_every_client_of_this_process_asks_and_connects_our_way() -> None:
    assert aiokafka.client.MetadataRequest is client.ExistingTopics
    assert aiokafka.client.create_conn is client.create_connection


async def test_a_connection_that_its_broker_ended_is_closed_when_it_is_asked_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def no_lookup(self: object) -> None: ...

    monkeypatch.setattr(client.Connection, "_do_version_lookup", no_lookup)
    reasons: list[object] = []
    accepted: asyncio.Queue[asyncio.StreamWriter] = asyncio.Queue()
    server = await asyncio.start_server(lambda _, writer: accepted.put_nowait(writer), "127.0.0.1")
    async with server:
        port = server.sockets[0].getsockname()[1]
        connection = await client.create_connection(
            "127.0.0.1", port, on_close=lambda _, reason: reasons.append(reason)
        )
        assert connection.connected()
        transport = connection._writer.transport
        # The end has come, and the task that reads has not run since.
        connection._reader.feed_eof()
        assert not connection.connected()
        assert transport.is_closing()
        assert reasons == [CloseReason.CONNECTION_BROKEN]
        await connection._closed_fut
        broker = await accepted.get()
        broker.close()
        await broker.wait_closed()


async def test_a_client_that_is_told_to_stop_before_its_first_answer_leaves_no_connection(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    held: list[client.Connection] = []

    async def any_version(self: client.Connection) -> None:
        self._versions = {3: (0, 1)}
        held.append(self)  # Whoever logs the error, or waits for it, holds it as well.

    monkeypatch.setattr(client.Connection, "_do_version_lookup", any_version)
    asked: asyncio.Queue[tuple[asyncio.StreamReader, asyncio.StreamWriter]] = asyncio.Queue()

    async def broker(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readexactly(4)
        await asked.put((reader, writer))

    server = await asyncio.start_server(broker, "127.0.0.1")
    async with server:
        port = server.sockets[0].getsockname()[1]
        kafka = aiokafka.client.AIOKafkaClient(bootstrap_servers=f"127.0.0.1:{port}")
        task = asyncio.create_task(kafka.bootstrap())
        reader, writer = await asked.get()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        async with asyncio.timeout(10):
            await reader.read()  # Ends where the client has closed its side.
        assert not held[0].connected()
        writer.close()
        await writer.wait_closed()
        await kafka.close()


def test_a_producer_that_a_broker_calls_fenced_is_fenced() -> None:
    assert client.PRODUCER_FENCED == 90
    assert for_code(90) is InvalidProducerEpoch


async def test_a_producer_that_is_fenced_leaves_no_failure_that_nobody_looked_at() -> None:
    unseen: list[str] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, said: unseen.append(said["message"]))
    manager = TransactionManager("id", 1000)
    manager.set_pid_and_epoch(1, 0)
    manager.begin_transaction()
    waited_for = manager.wait_for_transaction_end()
    offsets = manager.add_offsets_to_txn({}, "group")
    manager.error_transaction(ProducerFenced())
    # Then once more, into a future that nobody has.
    manager.fatal_error(ProducerFenced())
    assert isinstance(waited_for.exception(), ProducerFenced)
    assert isinstance(offsets.exception(), ProducerFenced)
    del waited_for, offsets, manager
    await asyncio.sleep(0)
    gc.collect()
    assert unseen == []


@pytest.mark.parametrize(
    ("code", "name", "helps"),
    [(81, "GroupMaxSizeReached", False), (82, "FencedInstanceId", False), (88, "Unstable", True)],
)
def test_codes_that_the_client_does_not_know_have_their_names(
    code: int, name: str, helps: bool
) -> None:
    kind = for_code(code)
    assert kind.__name__.startswith(name)
    assert f"[Error {code}] {name}" in str(kind())
    assert kind.retriable is helps
