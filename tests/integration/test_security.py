"""The processor over mutual TLS and over SASL_SSL with SCRAM-SHA-512, and who is kept out."""

import asyncio
import ipaddress
import subprocess
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from ares_stream.errors import BrokerError
from ares_stream.processes import broker as embedded
from ares_stream.records.topics import TopicSpec
from ares_stream.streaming.admin import create_topics
from ares_stream.streaming.connection import KafkaConnection
from ares_stream.streaming.contract import ProcessorObserver
from ares_stream.streaming.processor import Processor
from ares_stream.streaming.publisher import Publisher
from ares_stream.streaming.reader import read, snapshot
from ares_stream.streaming.records import InboundRecord, OutboundRecord, Outcome

pytestmark = pytest.mark.kafka

RECORDS = 50
USER, PASSWORD = "ares", "hunter2"


def certificates(folder: Path) -> None:
    """ca.pem, and NAME.pem with NAME.key for server and client, all for 127.0.0.1."""
    now = datetime.now(UTC)

    def issue(
        name: str, signer: ec.EllipticCurvePrivateKey | None, *, authority: bool = False
    ) -> ec.EllipticCurvePrivateKey:
        key = ec.generate_private_key(ec.SECP256R1())
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        certificate = (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "ca")]))
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - timedelta(minutes=5))
            .not_valid_after(now + timedelta(days=1))
            .add_extension(x509.BasicConstraints(authority, None), critical=True)
            .add_extension(
                x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]),
                critical=False,
            )
            .sign(signer or key, hashes.SHA256())
        )
        (folder / f"{name}.pem").write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
        (folder / f"{name}.key").write_bytes(
            key.private_bytes(
                serialization.Encoding.PEM,
                serialization.PrivateFormat.PKCS8,
                serialization.NoEncryption(),
            )
        )
        return key

    authority_key = issue("ca", None, authority=True)
    for name in ("server", "client"):
        issue(name, authority_key)


class SecuredBroker(embedded.EmbeddedBroker):
    """The embedded broker with two more listeners: SASL_SSL, and SSL that asks for a
    certificate."""

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self._folder = folder
        sasl, tls = embedded._free_ports(2)
        self.sasl, self.tls = f"127.0.0.1:{sasl}", f"127.0.0.1:{tls}"

    def _properties(self, node: embedded._Node) -> str:
        keystore = self._folder / "keystore.pem"
        keystore.write_bytes(
            (self._folder / "server.key").read_bytes() + (self._folder / "server.pem").read_bytes()
        )
        lines = []
        for line in super()._properties(node).splitlines():
            if line.startswith(("listeners=", "advertised.listeners=")):
                line += f",SASL_SSL://{self.sasl},SSL://{self.tls}"
            elif line.startswith("listener.security.protocol.map="):
                line += ",SASL_SSL:SASL_SSL,SSL:SSL"
            lines.append(line)
        return "\n".join(
            [
                *lines,
                "inter.broker.listener.name=PLAINTEXT",
                "sasl.enabled.mechanisms=SCRAM-SHA-512",
                "listener.name.sasl_ssl.scram-sha-512.sasl.jaas.config="
                "org.apache.kafka.common.security.scram.ScramLoginModule required;",
                "ssl.keystore.type=PEM",
                f"ssl.keystore.location={keystore}",
                "ssl.truststore.type=PEM",
                f"ssl.truststore.location={self._folder / 'ca.pem'}",
                "listener.name.ssl.ssl.client.auth=required",
                "",
            ]
        )

    def add_user(self, name: str, password: str) -> None:
        """Give a SCRAM user its password, with Kafka's own tool."""
        subprocess.run(
            [
                *self._java,
                "kafka.admin.ConfigCommand",
                *("--bootstrap-server", self.bootstrap, "--alter"),
                *("--entity-type", "users", "--entity-name", name),
                *("--add-config", f"SCRAM-SHA-512=[password={password}]"),
            ],
            check=True,
            capture_output=True,
            timeout=60,
        )


@dataclass(frozen=True)
class Ways:
    """Two ways in, and three that must stay shut."""

    scram: KafkaConnection
    mutual_tls: KafkaConnection
    shut: dict[str, KafkaConnection]


@pytest.fixture(scope="module")
def ways(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ways]:
    folder = tmp_path_factory.mktemp("tls")
    certificates(folder)
    (folder / "password").write_text(f"{PASSWORD}\n")
    (folder / "wrong").write_text("guess\n")
    with SecuredBroker(folder) as broker:
        broker.add_user(USER, PASSWORD)
        scram = KafkaConnection(
            bootstrap=broker.sasl,
            protocol="SASL_SSL",
            username=USER,
            password_file=folder / "password",
            ca_file=folder / "ca.pem",
        )
        mutual_tls = KafkaConnection(
            bootstrap=broker.tls,
            protocol="SSL",
            ca_file=folder / "ca.pem",
            certificate_file=folder / "client.pem",
            key_file=folder / "client.key",
        )
        shut = {
            "a wrong password": scram.model_copy(update={"password_file": folder / "wrong"}),
            "no certificate": mutual_tls.model_copy(
                update={"certificate_file": None, "key_file": None}
            ),
            "an unknown authority": scram.model_copy(update={"ca_file": None}),
        }
        yield Ways(scram, mutual_tls, shut)


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


@pytest.mark.parametrize("way", ["scram", "mutual_tls"])
async def test_records_go_through_exactly_once(ways: Ways, way: str) -> None:
    connection: KafkaConnection = getattr(ways, way)
    topics = [f"{way}.{name}" for name in ("in", "out", "dead")]
    await create_topics(connection, [TopicSpec(name, 1, 1) for name in topics])
    async with Publisher(connection) as publisher:
        await publisher.publish(
            [OutboundRecord(topics[0], b"k", b"%d" % number) for number in range(RECORDS)]
        )
    observer = Enough()
    processor = Processor(
        connection,
        service=way,
        group=way,
        topics=topics[:1],
        handler=Echo(topics[1]),
        deadletter_topic=topics[2],
        observer=observer,
    )
    async with asyncio.timeout(60), asyncio.TaskGroup() as tasks:
        tasks.create_task(processor.run())
        await observer.reached.wait()
        processor.stop()

    ranges = await snapshot(connection, topics[1:2])
    copied = [record.value async for record in read(connection, ranges)]
    assert copied == [b"%d" % number for number in range(RECORDS)]


@pytest.mark.parametrize("key", ["a wrong password", "no certificate", "an unknown authority"])
async def test_who_may_not_come_in_stays_out(ways: Ways, key: str) -> None:
    with pytest.raises(BrokerError):
        await create_topics(ways.shut[key], [TopicSpec("intruder", 1, 1)])
