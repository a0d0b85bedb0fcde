"""How to reach Kafka, and what may not be done on the way: no password in a log, no plain text
off this machine unless someone said so."""

from __future__ import annotations

import ipaddress
import re
import ssl
from pathlib import Path
from typing import Any, Final, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, SecretStr, field_validator, model_validator

from ares_stream.errors import SettingsError
from ares_stream.files import read_secret

REQUEST_TIMEOUT_MS: Final = 10_000
"""A broker that takes longer for one request is treated as gone; below the session time-out."""

_SERVER: Final = re.compile(
    r"(?:\[(?P<ipv6>[0-9A-Fa-f:.]+)\]|(?P<host>[\w.-]+))(?::(?P<port>[0-9]{1,5}))?"
)


class KafkaConnection(BaseModel):
    """Bootstrap servers and security. Secrets are named by file and never shown."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    bootstrap: str = Field("127.0.0.1:9092", min_length=1)
    protocol: Literal["PLAINTEXT", "SSL", "SASL_SSL"] = "PLAINTEXT"
    allow_plaintext: bool = False
    username: str | None = None
    password_file: Path | None = None
    ca_file: Path | None = None
    certificate_file: Path | None = None
    key_file: Path | None = None
    key_password_file: Path | None = None

    @field_validator("bootstrap")
    @classmethod
    def _servers(cls, value: str) -> str:
        servers = [server.strip() for server in value.split(",")]
        for number, server in enumerate(servers, 1):
            found = _SERVER.fullmatch(server)
            if found is None or (found["port"] and not 0 < int(found["port"]) < 65_536):
                raise ValueError(
                    f"server {number} of {len(servers)}: expected host:port, with commas between "
                    "servers, such as kafka-1:9092,[::1]:9092"
                )
        return ",".join(servers)

    @model_validator(mode="after")
    def _coherent(self) -> Self:
        if self.protocol == "PLAINTEXT" and not self.allow_plaintext:
            exposed = [host for host in self._hosts() if not _is_loopback(host)]
            if exposed:
                raise ValueError(
                    f"PLAINTEXT to {', '.join(exposed)} would send conversations readable over "
                    "the network; set protocol SSL or SASL_SSL, or allow_plaintext: true"
                )
        if self.protocol == "SASL_SSL" and not (self.username and self.password_file):
            raise ValueError("SASL_SSL needs username and password_file")
        if bool(self.certificate_file) != bool(self.key_file):
            raise ValueError("certificate_file and key_file belong together")
        return self

    def _hosts(self) -> list[str]:
        found = [_SERVER.fullmatch(server) for server in self.bootstrap.split(",")]
        return [(server["ipv6"] or server["host"]) for server in found if server is not None]

    def client_arguments(self) -> dict[str, Any]:
        """Keyword arguments for any aiokafka client. Reads the secret files now."""
        arguments: dict[str, Any] = {
            "bootstrap_servers": self.bootstrap,
            "security_protocol": self.protocol,
            "request_timeout_ms": REQUEST_TIMEOUT_MS,
        }
        if self.protocol != "PLAINTEXT":
            arguments["ssl_context"] = self._ssl_context()
        if self.protocol == "SASL_SSL":
            arguments["sasl_mechanism"] = "SCRAM-SHA-512"
            arguments["sasl_plain_username"] = self.username
            password = _secret("kafka.password_file", self.password_file)
            arguments["sasl_plain_password"] = password.get_secret_value() if password else None
        return arguments

    def _ssl_context(self) -> ssl.SSLContext:
        # Settings are read by commands that reach no broker, and aiokafka takes .3 s to import.
        from aiokafka.helpers import create_ssl_context

        password = _secret("kafka.key_password_file", self.key_password_file)
        try:
            context: ssl.SSLContext = create_ssl_context(
                cafile=self.ca_file and str(self.ca_file),
                certfile=self.certificate_file and str(self.certificate_file),
                keyfile=self.key_file and str(self.key_file),
                password=password.get_secret_value() if password else None,
            )
        except (OSError, ssl.SSLError) as error:
            raise SettingsError(f"kafka: certificates cannot be loaded: {error}") from None
        return context


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _secret(field: str, file: Path | None) -> SecretStr | None:
    return None if file is None else read_secret(field, file)
