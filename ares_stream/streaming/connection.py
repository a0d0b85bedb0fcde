"""How to reach Kafka, and what may not be done on the way: no password in a log, no plain text
off this machine unless someone said so."""

from __future__ import annotations

import ipaddress
import re
import ssl
from pathlib import Path
from typing import Any, Final, Literal, Self
from urllib.parse import urlsplit

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    PrivateAttr,
    SecretStr,
    field_validator,
    model_validator,
)

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
    protocol: Literal["PLAINTEXT", "SSL", "SASL_SSL", "SASL_PLAINTEXT"] = "PLAINTEXT"
    allow_plaintext: bool = False
    mechanism: Literal["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512", "OAUTHBEARER"] = "SCRAM-SHA-512"
    """Of SASL."""
    username: str | None = None
    """For PLAIN and SCRAM."""
    password_file: Path | None = None
    token_file: Path | None = None
    """For OAUTHBEARER: a token that somebody else renews, read at each connection."""
    token_endpoint: str | None = None
    """For OAUTHBEARER: where client credentials are given for a token."""
    token_client_id: str | None = None
    token_client_secret_file: Path | None = None
    token_scope: str | None = None
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

    _token_provider: Any = PrivateAttr(default=None)

    @model_validator(mode="after")
    def _coherent(self) -> Self:
        if self.protocol.endswith("PLAINTEXT") and not self.allow_plaintext:
            exposed = [host for host in self._hosts() if not _is_loopback(host)]
            if exposed:
                raise ValueError(
                    f"{self.protocol} to {', '.join(exposed)} would send conversations readable "
                    "over the network; set protocol SSL or SASL_SSL, or allow_plaintext: true"
                )
        if self.protocol.startswith("SASL"):
            self._check_sasl()
        if bool(self.certificate_file) != bool(self.key_file):
            raise ValueError("certificate_file and key_file belong together")
        return self

    def _check_sasl(self) -> None:
        if self.mechanism != "OAUTHBEARER":
            if not (self.username and self.password_file):
                raise ValueError(f"{self.mechanism} needs username and password_file")
            return
        if bool(self.token_file) == bool(self.token_endpoint):
            raise ValueError("OAUTHBEARER needs token_file or token_endpoint, and not both")
        if self.token_endpoint is None:
            return
        if not (self.token_client_id and self.token_client_secret_file):
            raise ValueError("token_endpoint needs token_client_id and token_client_secret_file")
        place = urlsplit(self.token_endpoint)
        if not place.hostname or place.scheme not in ("http", "https"):
            raise ValueError("token_endpoint is not a URL that begins with https://")
        if place.scheme == "http" and not _is_loopback(place.hostname):
            raise ValueError(
                "token_endpoint: http would send the client's secret readable over the network; "
                "use https"
            )

    def _hosts(self) -> list[str]:
        found = [_SERVER.fullmatch(server) for server in self.bootstrap.split(",")]
        return [(server["ipv6"] or server["host"]) for server in found if server is not None]

    def client_arguments(self) -> dict[str, Any]:
        """Keyword arguments for any aiokafka client. Reads the secret files now."""
        # Settings are read by commands that reach no broker, and aiokafka takes .3 s to import.
        import ares_stream.streaming.client  # noqa: F401

        arguments: dict[str, Any] = {
            "bootstrap_servers": self.bootstrap,
            "security_protocol": self.protocol,
            "request_timeout_ms": REQUEST_TIMEOUT_MS,
        }
        if self.protocol.endswith("SSL"):
            arguments["ssl_context"] = self._ssl_context()
        if self.protocol.startswith("SASL"):
            arguments["sasl_mechanism"] = self.mechanism
            if self.mechanism == "OAUTHBEARER":
                arguments["sasl_oauth_token_provider"] = self._tokens()
            else:
                password = _secret("kafka.password_file", self.password_file)
                arguments["sasl_plain_username"] = self.username
                arguments["sasl_plain_password"] = password.get_secret_value() if password else None
        return arguments

    def _tokens(self) -> Any:
        """One provider for all clients of this connection: they share its token."""
        from ares_stream.streaming.tokens import ClientCredentials, FileToken

        if self.token_file is not None:
            return FileToken(self.token_file)
        if self._token_provider is None:
            file = self.token_client_secret_file

            def secret() -> str:
                value = _secret("kafka.token_client_secret_file", file)
                return value.get_secret_value() if value else ""

            self._token_provider = ClientCredentials(
                str(self.token_endpoint),
                str(self.token_client_id),
                secret,
                self.token_scope,
                ca_file=self.ca_file,
            )
        return self._token_provider

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
