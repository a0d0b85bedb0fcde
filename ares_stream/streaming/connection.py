"""How to reach Kafka, and what may not be done on the way: no password in a log, no plain text
off this machine unless someone said so."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Callable
from pathlib import Path
from ssl import SSLContext
from typing import Any, Final, Literal, Self, cast
from urllib.parse import urlsplit

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    PrivateAttr,
    field_validator,
    model_validator,
)

from ares_stream.files import Renewed, renewed_secret

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
    """For OAUTHBEARER: a token that somebody else renews. Files are read at each connection."""
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

    _made: dict[tuple[Any, ...], Any] = PrivateAttr(default_factory=dict)

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
        """Keyword arguments for any aiokafka client, whose connections take what the files hold
        when they are made. Raises SettingsError where they cannot be used now, and never could."""
        # Settings are read by commands that reach no broker, and aiokafka takes .3 s to import.
        import ares_stream.streaming.client  # noqa: F401

        arguments: dict[str, Any] = {
            "bootstrap_servers": self.bootstrap,
            "security_protocol": self.protocol,
            "request_timeout_ms": REQUEST_TIMEOUT_MS,
        }
        if self.protocol.endswith("SSL"):
            arguments["ssl_context"] = self._certificates()
        if self.protocol.startswith("SASL"):
            arguments["sasl_mechanism"] = self.mechanism
            if self.mechanism == "OAUTHBEARER":
                arguments["sasl_oauth_token_provider"] = self._tokens()
            elif self.password_file is not None:
                arguments["sasl_plain_username"] = self.username
                arguments["sasl_plain_password"] = self._secret(
                    "kafka.password_file", self.password_file
                )
        return arguments

    def _certificates(self) -> Renewed[SSLContext]:
        from ares_stream.streaming.certificates import Certificates

        files = (self.ca_file, self.certificate_file, self.key_file, self.key_password_file)
        found: Certificates = self._kept(Certificates, *files)
        found.value()
        return found

    def _secret(self, field: str, file: Path) -> Renewed[str]:
        found: Renewed[str] = self._kept(renewed_secret, field, file)
        found.value()
        return found

    def _tokens(self) -> Any:
        from ares_stream.streaming.tokens import ClientCredentials, FileToken

        if self.token_file is not None:
            return self._kept(FileToken, self.token_file)
        file = cast("Path", self.token_client_secret_file)
        return self._kept(
            ClientCredentials,
            str(self.token_endpoint),
            str(self.token_client_id),
            self._secret("kafka.token_client_secret_file", file),
            self.token_scope,
            self.ca_file,
        )

    def _kept(self, make: Callable[..., Any], *arguments: Any) -> Any:
        """The same for all clients of this connection: they share a token, and what was read of a
        file before it was written over. (A copy with other files has its own.)"""
        key = (make, *arguments)
        if key not in self._made:
            self._made[key] = make(*arguments)
        return self._made[key]


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
