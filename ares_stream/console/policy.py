"""Who may come in and how the queue works: small frozen parts of the settings."""

from __future__ import annotations

from ipaddress import ip_network
from pathlib import Path
from typing import Final, Self

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

LOOPBACK: Final = ("127.0.0.0/8", "::1/128")


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class JwtPolicy(_Part):
    """The signed token that an authenticating proxy adds to each request (RFC 7519)."""

    issuer: str = Field(min_length=1)
    audience: str = Field(min_length=1)
    jwks_file: Path | None = None
    jwks_url: str | None = Field(None, pattern="^https?://")
    """Where the keys are (RFC 7517): one of the two."""
    header: str = "authorization"
    """`Bearer` before the token is taken off."""
    claim: str = "email"
    """What the person is called."""
    leeway_seconds: int = Field(30, ge=0, le=300)

    @model_validator(mode="after")
    def _one_place(self) -> Self:
        if (self.jwks_file is None) == (self.jwks_url is None):
            raise ValueError("needs one of jwks_file and jwks_url")
        return self


class HeaderPolicy(_Part):
    """A header with the person's name, believed only from these networks: whoever else can reach
    the port could write it too."""

    name: str = "x-forwarded-user"
    networks: tuple[str, ...] = LOOPBACK

    @field_validator("networks")
    @classmethod
    def _are_networks(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for item in value:
            try:
                ip_network(item)
            except ValueError:
                raise ValueError("holds what is no network, such as 10.0.0.0/8") from None
        return value


class IdentityPolicy(_Part):
    """How the console knows who asks; at least one of the three."""

    jwt: JwtPolicy | None = None
    tokens: Path | None = None
    """JSON: a person's name to the SHA-256 (hexadecimal) of that person's token."""
    header: HeaderPolicy | None = None
    approvers: tuple[str, ...] = ()
    """Who may decide on releases and acknowledge alarms; empty means everyone."""
    session_hours: float = Field(8.0, gt=0, le=24)

    @property
    def is_open_to_anyone(self) -> bool:
        """Whether there is a way in at all."""
        return any(item is not None for item in (self.jwt, self.tokens, self.header))


class QueuePolicy(_Part):
    """How items are handed out."""

    lease_seconds: float = Field(600.0, ge=1.0)
    """How long an item stays with whom it was given to."""
    second_opinions: float = Field(0.2, ge=0.0, le=1.0)
    """Share of items that two people see without knowing of each other; a third where the two
    differ."""
    max_items: int = Field(20_000, ge=1)
    max_labels: int = Field(200_000, ge=1)
