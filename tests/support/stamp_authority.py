"""A time-stamp authority (RFC 3161): OpenSSL answers, a small HTTP server carries."""

from __future__ import annotations

import asyncio
import subprocess
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Final

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from ares_stream.services.health import serve_health

CONFIG: Final = """
[tsa]
default_tsa = authority
[authority]
dir = {folder}
serial = {folder}/serial
default_policy = 1.2.3.4.1
signer_digest = sha256
digests = sha256
accuracy = secs:1
"""


class StampServer:
    """Its roots are at `roots`; `answers` may be told to fail."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir()
        self.folder = folder
        self.roots = folder / "roots.pem"
        self.asked = 0
        self.fails = False
        self.gate: asyncio.Event | None = None
        """Where it is set, questions wait for it."""
        self.inside = self.most = 0
        """Questions that wait now, and at most."""
        self._certify()
        (folder / "serial").write_text("01")
        (folder / "tsa.cnf").write_text(CONFIG.format(folder=folder))

    def _certify(self) -> None:
        now = datetime.now(UTC)
        root_key, key = (rsa.generate_private_key(65537, 2048) for _ in range(2))
        names = [x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
                 for name in ("test root", "test authority")]  # fmt: skip

        def certificate(subject: x509.Name, public: rsa.RSAPublicKey) -> x509.CertificateBuilder:
            return (
                x509.CertificateBuilder()
                .subject_name(subject)
                .issuer_name(names[0])
                .public_key(public)
                .serial_number(x509.random_serial_number())
                .not_valid_before(now - timedelta(days=1))
                .not_valid_after(now + timedelta(days=1))
            )

        root = (
            certificate(names[0], root_key.public_key())
            .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
            .sign(root_key, hashes.SHA256())
        )
        leaf = (
            certificate(names[1], key.public_key())
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(
                x509.ExtendedKeyUsage([ExtendedKeyUsageOID.TIME_STAMPING]), critical=True
            )
            .sign(root_key, hashes.SHA256())
        )
        pem = serialization.Encoding.PEM
        self.roots.write_bytes(root.public_bytes(pem))
        (self.folder / "tsa.pem").write_bytes(leaf.public_bytes(pem))
        (self.folder / "key.pem").write_bytes(
            key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
        )

    def reply(self, question: bytes) -> bytes:
        """A stamp with the time of now."""
        query, answer = self.folder / "query", self.folder / "answer"
        query.write_bytes(question)
        subprocess.run(
            [
                *("openssl", "ts", "-reply", "-queryfile", query, "-out", answer),
                *("-signer", self.folder / "tsa.pem", "-inkey", self.folder / "key.pem"),
                *("-config", self.folder / "tsa.cnf", "-section", "authority"),
            ],
            check=True, capture_output=True,
        )  # fmt: skip
        return answer.read_bytes()

    async def _answer(self, request: Request) -> Response:
        question = await request.body()
        self.asked += 1
        self.inside += 1
        self.most = max(self.most, self.inside)
        try:
            if self.gate is not None:
                await self.gate.wait()
        finally:
            self.inside -= 1
        if self.fails:
            return Response(status_code=503)
        return Response(self.reply(question), media_type="application/timestamp-reply")

    @asynccontextmanager
    async def served(self) -> AsyncIterator[str]:
        """Its address."""
        app = Starlette(routes=[Route("/", self._answer, methods=["POST"])])
        async with serve_health(app, "127.0.0.1", 0) as port:
            yield f"http://127.0.0.1:{port}/"
