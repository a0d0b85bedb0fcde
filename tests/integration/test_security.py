"""The processor over every way to authenticate that the settings know, and who is kept out."""

import asyncio
import base64
import threading
from collections.abc import Callable, Coroutine, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl

import pytest
import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route

from ares_stream.errors import LoginError
from ares_stream.processes.ports import free_port
from ares_stream.records.topics import TopicSpec
from ares_stream.streaming.admin import create_topics, describe_topics
from ares_stream.streaming.connection import KafkaConnection
from ares_stream.streaming.contract import ProcessorObserver
from ares_stream.streaming.follower import Follower
from ares_stream.streaming.journal import Journal, group_lag
from ares_stream.streaming.processor import Processor
from ares_stream.streaming.publisher import Publisher
from ares_stream.streaming.queue import Queue
from ares_stream.streaming.reader import read, snapshot
from ares_stream.streaming.records import InboundRecord, OutboundRecord, Outcome
from tests.support.secured import (
    PASSWORD,
    USER,
    SecuredBroker,
    TlsServer,
    unsecured_token,
)
from tests.support.sessions import Copying, Seen, let_go, running, until

pytestmark = pytest.mark.kafka

RECORDS = 50


@dataclass(frozen=True)
class Ways:
    """Ways in, and those that must stay shut."""

    open: dict[str, KafkaConnection]
    shut: dict[str, KafkaConnection]


OPEN = ("PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512", "token file", "token endpoint", "mutual TLS")
PASSWORDS = r"kafka.username, kafka.password_file \({}\): .* refuses the login, and says: .*{}"
SHUT = {
    "a wrong password, PLAIN": PASSWORDS.format("PLAIN", "Invalid username or password"),
    "a wrong password, SCRAM-SHA-256": PASSWORDS.format("SCRAM-SHA-256", "invalid credentials"),
    "a wrong password, SCRAM-SHA-512": PASSWORDS.format("SCRAM-SHA-512", "invalid credentials"),
    "an unknown user": PASSWORDS.format("SCRAM-SHA-512", "invalid credentials"),
    "an expired token": r"kafka.token_file: .* says: invalid_token",
    "an empty token file": r"kafka.token_file: .*none: is empty",
    "a wrong client secret": r"kafka.token_client_secret_file: .* answers 401",
    "a mechanism that is not offered": r"kafka.mechanism: .* does not offer PLAIN",
    "no certificate": r"kafka.certificate_file, .*: .*certificate required",
    "another's certificate": r"kafka.certificate_file, .*: .*(unknown ca|certificate)",
    "an unknown authority": r"kafka.ca_file: .* is not trusted: ",
    "a port without logins": r"kafka.protocol: .* takes no login on this port",
    "TLS to a port without": r"kafka.protocol: .* speaks PLAINTEXT on this port, not SSL",
    "TLS and login to a port without": r"kafka.protocol: .* speaks PLAINTEXT .*, not SASL_SSL",
    "TLS to a port with logins alone": r"kafka.protocol: .* speaks SASL_PLAINTEXT .*, not SASL_SSL",
    "no TLS to a port with": r"kafka.protocol: .* speaks SASL_SSL on this port, not PLAINTEXT",
    "no TLS to a port for certificates": r"kafka.protocol: .* speaks SSL .*, not PLAINTEXT",
    "no TLS, but a login": r"kafka.protocol: .* speaks SASL_SSL on this port, not SASL_PLAINTEXT",
    "no login to a port with": r"kafka.protocol: .* speaks SASL_PLAINTEXT .*, not PLAINTEXT",
    "no login to a port with TLS": r"kafka.protocol: .* speaks SASL_SSL on this port, not SSL",
    "an expired certificate": r"kafka.ca_file: .* is not trusted: certificate has expired",
    "another host's certificate": r"kafka.ca_file: .* is not trusted: IP address mismatch",
}
"""Ways in that stay shut, and what a person is told."""


async def give_token(request: Request) -> JSONResponse:
    """A token endpoint that knows one client."""
    form = dict(parse_qsl((await request.body()).decode()))
    known = base64.b64encode(f"client:{PASSWORD}".encode()).decode()
    if request.headers.get("authorization") != f"Basic {known}":
        return JSONResponse({"error": "invalid_client"}, 401)
    if form.get("grant_type") != "client_credentials" or form.get("scope") != "kafka":
        return JSONResponse({"error": "invalid_request"}, 400)
    return JSONResponse({"access_token": unsecured_token(), "expires_in": 600})


@pytest.fixture(scope="module")
def token_endpoint() -> Iterator[str]:
    """In a thread of its own, since every test has an event loop of its own."""
    server = uvicorn.Server(
        uvicorn.Config(
            Starlette(routes=[Route("/token", give_token, methods=["POST"])]),
            host="127.0.0.1",
            port=free_port(),
            log_config=None,
        )
    )
    thread = threading.Thread(target=server.run)
    thread.start()
    yield f"http://127.0.0.1:{server.config.port}/token"
    server.should_exit = True
    thread.join()


@pytest.fixture(scope="module")
def ways(tmp_path_factory: pytest.TempPathFactory, token_endpoint: str) -> Iterator[Ways]:
    folder = tmp_path_factory.mktemp("tls")
    (folder / "password").write_text(f"{PASSWORD}\n")
    (folder / "wrong").write_text("guess\n")
    (folder / "token").write_text(unsecured_token())
    (folder / "none").write_text("")
    (folder / "expired").write_text(unsecured_token(seconds=-3600.0))
    with (
        SecuredBroker(folder) as broker,
        TlsServer(folder, "expired") as past,
        TlsServer(folder, "elsewhere") as elsewhere,
    ):
        sasl = KafkaConnection(
            bootstrap=broker.sasl,
            protocol="SASL_SSL",
            username=USER,
            password_file=folder / "password",
            ca_file=folder / "ca.pem",
        )
        by_password = {
            name: sasl.model_copy(update={"mechanism": name})
            for name in ("PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512")
        }
        bearer = {
            "bootstrap": broker.sasl,
            "protocol": "SASL_SSL",
            "mechanism": "OAUTHBEARER",
            "ca_file": folder / "ca.pem",
        }
        endpoint = {
            **bearer,
            "ca_file": folder / "ca.pem",
            "token_endpoint": token_endpoint,
            "token_client_id": "client",
            "token_scope": "kafka",
        }
        mutual_tls = KafkaConnection(
            bootstrap=broker.tls,
            protocol="SSL",
            ca_file=folder / "ca.pem",
            certificate_file=folder / "client.pem",
            key_file=folder / "client.key",
        )

        def of(fields: dict[str, Any], **more: Any) -> KafkaConnection:
            return KafkaConnection.model_validate({**fields, **more})

        yield Ways(
            open={
                **by_password,
                "token file": of(bearer, token_file=folder / "token"),
                "token endpoint": of(endpoint, token_client_secret_file=folder / "password"),
                "mutual TLS": mutual_tls,
            },
            shut={
                **{
                    f"a wrong password, {name}": way.model_copy(
                        update={"password_file": folder / "wrong"}
                    )
                    for name, way in by_password.items()
                },
                "an expired token": of(bearer, token_file=folder / "expired"),
                "a wrong client secret": of(endpoint, token_client_secret_file=folder / "wrong"),
                "an unknown user": sasl.model_copy(update={"username": "nobody"}),
                "an empty token file": of(bearer, token_file=folder / "none"),
                "a mechanism that is not offered": sasl.model_copy(
                    update={
                        "bootstrap": broker.scram,
                        "protocol": "SASL_PLAINTEXT",
                        "mechanism": "PLAIN",
                    }
                ),
                "another's certificate": mutual_tls.model_copy(
                    update={
                        "certificate_file": folder / "stranger.pem",
                        "key_file": folder / "stranger.key",
                    }
                ),
                "a port without logins": sasl.model_copy(
                    update={"bootstrap": broker.bootstrap, "protocol": "SASL_PLAINTEXT"}
                ),
                "no certificate": mutual_tls.model_copy(
                    update={"certificate_file": None, "key_file": None}
                ),
                "an unknown authority": sasl.model_copy(update={"ca_file": None}),
                **wrong_protocols(broker, sasl, folder),
                "an expired certificate": sasl.model_copy(update={"bootstrap": past.address}),
                "another host's certificate": sasl.model_copy(
                    update={"bootstrap": elsewhere.address}
                ),
            },
        )


def wrong_protocols(
    broker: SecuredBroker, sasl: KafkaConnection, folder: Path
) -> dict[str, KafkaConnection]:
    def at(port: str, protocol: str) -> KafkaConnection:
        return sasl.model_copy(
            update={"bootstrap": port, "protocol": protocol, "ca_file": folder / "ca.pem"}
        )

    return {
        "TLS to a port without": at(broker.bootstrap, "SSL"),
        "TLS and login to a port without": at(broker.bootstrap, "SASL_SSL"),
        "TLS to a port with logins alone": at(broker.scram, "SASL_SSL"),
        "no TLS to a port with": at(broker.sasl, "PLAINTEXT"),
        "no TLS to a port for certificates": at(broker.tls, "PLAINTEXT"),
        "no TLS, but a login": at(broker.sasl, "SASL_PLAINTEXT"),
        "no login to a port with": at(broker.scram, "PLAINTEXT"),
        "no login to a port with TLS": at(broker.sasl, "SSL"),
    }


class Echo:
    def __init__(self, topic: str) -> None:
        self._topic = topic

    async def handle(self, records: Sequence[InboundRecord]) -> Sequence[Outcome]:
        return [(OutboundRecord(self._topic, record.key, record.value),) for record in records]


class Enough(ProcessorObserver):
    """Wakes the test once all records are committed."""

    def __init__(self) -> None:
        self.reached = asyncio.Event()
        self._records = 0

    def committed(self, topic: str, partition: int, records: int, seconds: float) -> None:
        self._records += records
        if self._records >= RECORDS:
            self.reached.set()


@pytest.mark.parametrize("way", OPEN)
async def test_records_go_through_exactly_once(ways: Ways, way: str) -> None:
    connection, prefix = ways.open[way], way.replace(" ", "-")
    topics = [f"{prefix}.{name}" for name in ("in", "out", "dead")]
    await create_topics(connection, [TopicSpec(name, 1, 1) for name in topics])
    async with Publisher(connection) as publisher:
        await publisher.publish(
            [OutboundRecord(topics[0], b"k", b"%d" % number) for number in range(RECORDS)]
        )
    observer = Enough()
    processor = Processor(
        connection,
        service=prefix,
        group=prefix,
        topics=topics[:1],
        handler=Echo(topics[1]),
        deadletter_topic=topics[2],
        observer=observer,
    )
    async with asyncio.timeout(150), asyncio.TaskGroup() as tasks:
        tasks.create_task(processor.run())
        await observer.reached.wait()
        processor.stop()

    ranges = await snapshot(connection, topics[1:2])
    copied = [record.value async for record in read(connection, ranges)]
    assert copied == [b"%d" % number for number in range(RECORDS)]


@pytest.mark.parametrize("key", SHUT)
async def test_who_may_not_come_in_stays_out_and_is_told_the_setting_and_no_secret(
    ways: Ways, key: str, caplog: pytest.LogCaptureFixture
) -> None:
    connection = ways.shut[key]
    caplog.set_level("INFO")
    with pytest.raises(LoginError, match=SHUT[key]) as told:
        await create_topics(connection, [TopicSpec("intruder", 1, 1)])
    await let_go()
    assert told.value.exit_code == 2
    said = f"{told.value} {connection!r} {connection.model_dump_json()} {caplog.text}"
    for secret in (PASSWORD, "guess", unsecured_token().split(".")[0]):
        assert secret not in said


async def enter(journal: Journal | Follower) -> None:
    async with journal:
        pass


def copying(connection: KafkaConnection, prefix: str) -> Copying:
    found = Copying(connection.bootstrap, prefix)
    found.connection = connection
    return found


CALLERS: dict[str, Callable[[KafkaConnection], Coroutine[Any, Any, object]]] = {
    "processor": lambda at: copying(at, "x").processor(Seen()).run(),
    "publisher": lambda at: Publisher(at).publish([OutboundRecord("x", None, b"x")]),
    "journal": lambda at: enter(Journal(at, "x")),
    "queue": lambda at: Queue(at, "x", "x").start(),
    "follower": lambda at: enter(Follower(at, ["x"], {})),
    "reader": lambda at: snapshot(at, ["x"]),
    "lag": lambda at: group_lag(at, "x", ["x"]),
    "topics": lambda at: describe_topics(at, ["x"]),
}


@pytest.mark.parametrize("caller", CALLERS)
@pytest.mark.parametrize(
    "key",
    [
        "a wrong password, SCRAM-SHA-512",
        "no certificate",
        "TLS to a port without",
        "no TLS to a port with",
        "no login to a port with",
    ],
)
async def test_nobody_waits_for_a_refused_login_as_for_an_outage(
    ways: Ways, caller: str, key: str
) -> None:
    with pytest.raises(LoginError, match=SHUT[key]):
        async with asyncio.timeout(60):
            await CALLERS[caller](ways.shut[key])
    await let_go()


async def test_a_password_may_be_changed_while_a_processor_works(
    ways: Ways, tmp_path: Path
) -> None:
    password = tmp_path / "password"
    password.write_text(PASSWORD)
    open_way = ways.open["PLAIN"]
    through = copying(open_way.model_copy(update={"password_file": password}), "changed.")
    through.direct = open_way
    await through.create()
    seen = Seen()
    processor = through.processor(seen)
    async with running(processor):
        await through.send(3)
        await until(lambda: seen.records == 3)
        await until(lambda: processor.missing() is None)
        password.write_text("guess")
        assert processor._session is not None
        processor._session._consumer._fetcher._fetch_task.cancel()
        await asyncio.sleep(1.0)  # The last fetch on its way comes back empty.
        await through.send(1)
        await until(lambda: "kafka.password_file" in (processor.missing() or ""), 40)
        password.write_text(PASSWORD)
        await through.send(3)
        await until(lambda: seen.records == 7, 40)
