"""A broker with every way to authenticate that the settings know, and what its clients need."""

from __future__ import annotations

import base64
import contextlib
import ipaddress
import json
import socket
import ssl
import threading
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from ares_stream.processes.broker import EmbeddedBroker
from ares_stream.processes.ports import free_ports

USER: Final = "ares"
PASSWORD: Final = "hunter2"
MECHANISMS: Final = ("PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512", "OAUTHBEARER")


def certificates(folder: Path) -> None:
    """ca.pem, and NAME.pem with NAME.key for server and client, all for 127.0.0.1; those of
    `stranger` are signed by nobody else, that of `expired` ended an hour ago, and that of
    `elsewhere` is another host's."""
    now = datetime.now(UTC)

    def issue(
        name: str,
        signer: ec.EllipticCurvePrivateKey | None,
        *,
        authority: bool = False,
        ends: timedelta = timedelta(days=1),
        address: str = "127.0.0.1",
    ) -> ec.EllipticCurvePrivateKey:
        key = ec.generate_private_key(ec.SECP256R1())
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        certificate = (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "ca")]))
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - timedelta(hours=2))
            .not_valid_after(now + ends)
            .add_extension(x509.BasicConstraints(authority, None), critical=True)
            .add_extension(
                x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address(address))]),
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
    issue("stranger", None)
    issue("expired", authority_key, ends=timedelta(hours=-1))
    issue("elsewhere", authority_key, address="192.0.2.1")


def unsecured_token(subject: str = USER, seconds: float = 600.0) -> str:
    """A JSON web token without a signature, as Kafka's validator for tests takes it."""

    def part(fields: dict[str, object]) -> str:
        return base64.urlsafe_b64encode(json.dumps(fields).encode()).rstrip(b"=").decode()

    now = time.time()
    claims: dict[str, object] = {"sub": subject, "iat": now, "exp": now + seconds}
    return f"{part({'alg': 'none'})}.{part(claims)}."


class SecuredBroker(EmbeddedBroker):
    """Four listeners: `sasl` (SASL_SSL, every mechanism), `scram` (SASL_PLAINTEXT, one mechanism),
    `tls` (SSL that asks for a certificate) and `bootstrap`, which is open."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        certificates(folder)
        keystore = self.write_keystore()
        plain, control, *others = free_ports(5)
        self.sasl, self.tls, self.scram = (f"127.0.0.1:{port}" for port in others)
        listeners = (
            f"PLAINTEXT://127.0.0.1:{plain},CONTROLLER://127.0.0.1:{control},"
            f"SASL_SSL://{self.sasl},SSL://{self.tls},SASL_PLAINTEXT://{self.scram}"
        )
        (folder / "kafka").mkdir()
        (folder / "kafka" / "ports.json").write_text(json.dumps([plain, control]))
        of_sasl, only = "listener.name.sasl_ssl", "listener.name.sasl_plaintext"
        scram = "org.apache.kafka.common.security.scram.ScramLoginModule required;"
        super().__init__(
            data_dir=folder / "kafka",
            properties={
                "listeners": listeners,
                "advertised.listeners": listeners,
                "listener.security.protocol.map": "PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT,"
                "SASL_SSL:SASL_SSL,SSL:SSL,SASL_PLAINTEXT:SASL_PLAINTEXT",
                "inter.broker.listener.name": "PLAINTEXT",
                f"{of_sasl}.sasl.enabled.mechanisms": ",".join(MECHANISMS),
                f"{of_sasl}.plain.sasl.jaas.config": "org.apache.kafka.common.security.plain."
                f'PlainLoginModule required user_{USER}="{PASSWORD}";',
                f"{of_sasl}.scram-sha-256.sasl.jaas.config": scram,
                f"{of_sasl}.scram-sha-512.sasl.jaas.config": scram,
                f"{of_sasl}.oauthbearer.sasl.jaas.config": "org.apache.kafka.common.security."
                "oauthbearer.OAuthBearerLoginModule required "
                'unsecuredLoginStringClaim_sub="broker";',
                f"{only}.sasl.enabled.mechanisms": "SCRAM-SHA-512",
                f"{only}.scram-sha-512.sasl.jaas.config": scram,
                "ssl.keystore.type": "PEM",
                "ssl.keystore.location": str(keystore),
                "ssl.truststore.type": "PEM",
                "ssl.truststore.location": str(folder / "ca.pem"),
                "listener.name.ssl.ssl.client.auth": "required",
            },
            scram=[f"SCRAM-SHA-{size}=[name={USER},password={PASSWORD}]" for size in (256, 512)],
        )

    def write_keystore(self) -> Path:
        """What the broker shows, from server.pem and server.key; read at its next start."""
        keystore = self._folder / "keystore.pem"
        keystore.write_bytes(
            (self._folder / "server.key").read_bytes() + (self._folder / "server.pem").read_bytes()
        )
        return keystore


class TlsServer:
    """Speaks TLS with a certificate of the folder, and nothing within it: for clients that look at
    the certificate first."""

    def __init__(self, folder: Path, name: str) -> None:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(folder / f"{name}.pem", folder / f"{name}.key")
        self._context = context
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.address = f"127.0.0.1:{self._listener.getsockname()[1]}"
        self._thread = threading.Thread(target=self._serve)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._thread.join()

    def _serve(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            with contextlib.suppress(OSError), client:
                client.settimeout(5)
                self._context.wrap_socket(client, server_side=True).close()
