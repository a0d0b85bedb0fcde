"""Who asks: a proxy's signed token, a token of one's own, or a header from a trusted network.

Nothing else in a request says who someone is. A signed token must be whole, from the issuer, for
this audience and not expired; a header counts only from the listed networks. Who has no way in
is told so in one sentence that quotes nothing of the request.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import hmac
import json
import re
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from ipaddress import ip_address, ip_network
from pathlib import Path
from typing import Any, Final

import httpx
from joserfc import jwt
from joserfc.jwk import KeySet
from starlette.requests import Request

from ares_stream.console.policy import IdentityPolicy, JwtPolicy
from ares_stream.endpoints.client import http_client
from ares_stream.errors import SettingsError
from ares_stream.files import (
    AnswerError,
    Renewed,
    read_answer,
    read_json,
    read_text,
)

COOKIE: Final = "ares_session"
ALGORITHMS: Final = ["RS256", "PS256", "ES256", "ES384", "Ed25519", "EdDSA"]
"""With public keys only: a shared secret in the key set would let its readers sign."""
KEYS_SECONDS: Final = 30.0
"""Between two fetches of the keys, so that forged key ids are no load on the issuer."""
KEYS_LIFE_SECONDS: Final = 300.0
"""After which keys are fetched again though all of them are known: one that was withdrawn would
let its owner in for ever."""
KEYS_STALE_SECONDS: Final = 3600.0
"""For which keys serve that cannot be fetched again. Longer, and who holds a key that was withdrawn
would only have to keep the issuer from answering."""
FETCH_SECONDS: Final = 5.0
MAX_KEYS_BYTES: Final = 1 << 20
_NAME: Final = re.compile(r"[^\W_][\w.@+-]{0,127}")
_SHA256: Final = re.compile(r"[0-9a-f]{64}")


class RefusedError(Exception):
    """This request is nobody's. `may_log_in` says whether a token of one's own would help."""

    def __init__(self, reason: str, *, may_log_in: bool = False) -> None:
        super().__init__(reason)
        self.may_log_in = may_log_in


@dataclass(frozen=True, slots=True)
class Person:
    """Who asks. `secret` ties forms to their session; it is shown to nobody."""

    name: str
    may_approve: bool
    secret: str


class Identity:
    """Tells who a request is from. `key` signs sessions and forms; whoever has it can forge
    both, so it is made anew for each process or read from a file."""

    def __init__(
        self, policy: IdentityPolicy, key: bytes, clock: Callable[[], float] = time.time
    ) -> None:
        if not policy.is_open_to_anyone:
            raise SettingsError(
                "console.identity: lets nobody in; set jwt, tokens or header (docs/review.md)"
            )
        self._policy = policy
        self._key = key
        self._clock = clock
        self._tokens = None if policy.tokens is None else _people(policy.tokens)
        self._jwt = None if policy.jwt is None else _SignedTokens(policy.jwt, clock)
        networks = policy.header.networks if policy.header else ()
        self._networks = [ip_network(item) for item in networks]

    @property
    def has_tokens(self) -> bool:
        """Whether people log in with a token of their own."""
        return self._policy.tokens is not None

    async def person(self, request: Request) -> Person:
        """Who asks. Raises RefusedError."""
        if self._jwt is not None:
            value = _only(request, self._jwt.policy.header)
            if value:
                return self._known(await self._jwt.name(value.removeprefix("Bearer ").strip()))
        session = request.cookies.get(COOKIE, "")
        if self.has_tokens and session:
            return self._known(self._session_name(session), session)
        if self._policy.header is not None:
            name = _only(request, self._policy.header.name)
            if name:
                if not self._is_near(request):
                    raise RefusedError("the header with your name came from a network not listed")
                return self._known(name)
        raise RefusedError("you are not logged in", may_log_in=self.has_tokens)

    def log_in(self, token: str) -> str | None:
        """A session's cookie for the owner of a token, None for a token of nobody's."""
        digest = hashlib.sha256(token.strip().encode()).hexdigest()
        found = None
        for name, known in self._admitted().items():
            if hmac.compare_digest(known, digest):
                found = name
        if found is None:
            return None
        until = int(self._clock() + self._policy.session_hours * 3600)
        text = base64.urlsafe_b64encode(f"{until}|{found}".encode()).decode()
        return f"{text}.{self._sign('session', text)}"

    def form_token(self, person: Person) -> str:
        """What a form of this person must carry."""
        return self._sign("form", f"{person.name}\0{person.secret}")

    def is_form_of(self, person: Person, token: str) -> bool:
        """Whether the form was made for this person, in this session."""
        return hmac.compare_digest(self.form_token(person).encode(), token.encode())

    def _known(self, name: str, secret: str = "") -> Person:
        if not _NAME.fullmatch(name):
            raise RefusedError("your name holds characters that no name may have")
        approvers = self._policy.approvers
        return Person(name, not approvers or name in approvers, secret)

    def _session_name(self, cookie: str) -> str:
        text, _, signature = cookie.partition(".")
        if not hmac.compare_digest(self._sign("session", text).encode(), signature.encode()):
            raise RefusedError("your session is not of this console; log in again", may_log_in=True)
        until, _, name = base64.urlsafe_b64decode(text).decode().partition("|")
        # Who was taken out of the file is out.
        if int(until) < self._clock() or name not in self._admitted():
            raise RefusedError("your session has ended; log in again", may_log_in=True)
        return name

    def _admitted(self) -> Mapping[str, str]:
        return {} if self._tokens is None else self._tokens.current

    def _sign(self, purpose: str, text: str) -> str:
        return hmac.new(self._key, f"{purpose}\0{text}".encode(), hashlib.sha256).hexdigest()

    def _is_near(self, request: Request) -> bool:
        if request.client is None:
            return False
        try:
            address = ip_address(request.client.host)
        except ValueError:
            return False
        mapped = getattr(address, "ipv4_mapped", None)
        return any((mapped or address) in network for network in self._networks)


def _only(request: Request, name: str) -> str:
    """A header's value, "" where it is not there. Raises RefusedError where it comes twice: a proxy
    that adds its own behind what the browser sent would let anybody name themselves."""
    found = request.headers.getlist(name)
    if len(found) > 1:
        raise RefusedError(
            f"the header {name} came {len(found)} times; the proxy must take away what a browser "
            "sends under that name"
        )
    return found[0] if found else ""


def read_tokens(file: Path) -> Mapping[str, str]:
    """Names and the SHA-256 of their tokens. Raises SettingsError that names the file."""
    found = read_json(file, dict[str, str])
    if not found:
        raise SettingsError(f'{file}: names nobody; expected {{"name": "SHA-256 of the token"}}')
    for place, (name, digest) in enumerate(found.items(), 1):
        if not _NAME.fullmatch(name):
            raise SettingsError(f"{file}: entry {place}: not a person's name")
        if not _SHA256.fullmatch(digest):
            raise SettingsError(f"{file}: {name}: not a SHA-256 of 64 hexadecimal digits")
    return found


def _people(file: Path) -> Renewed[Mapping[str, str]]:
    found = Renewed("console.identity.tokens", [file], lambda: read_tokens(file))
    found.value()
    return found


class _SignedTokens:
    """Names out of signed tokens; keys from a file or the URL of the settings."""

    def __init__(self, policy: JwtPolicy, clock: Callable[[], float]) -> None:
        self.policy = policy
        self._clock = clock
        self._read_at = -KEYS_SECONDS
        self._fetching = asyncio.Lock()
        self._keys: KeySet | None = None
        self._fetched_at = clock()
        self._claims = jwt.JWTClaimsRegistry(
            now=lambda: int(clock()),
            leeway=policy.leeway_seconds,
            iss={"essential": True, "value": policy.issuer},
            aud={"essential": True, "value": policy.audience},
            exp={"essential": True},
        )
        if policy.jwks_file is not None:
            self._keys = _key_set(policy.jwks_file.name, read_text(policy.jwks_file))

    async def name(self, value: str) -> str:
        """The claim that names the person. Raises RefusedError."""
        is_old = self._clock() - self._fetched_at >= KEYS_LIFE_SECONDS
        keys = await self._newer() if self._keys is None or is_old else self._keys
        try:
            claims = self._verified(value, keys)
        except ValueError:
            # Keys are rotated: an unknown one may be new.
            newer = await self._newer()
            if newer is keys:
                raise RefusedError("the proxy's token is not valid here") from None
            try:
                claims = self._verified(value, newer)
            except ValueError:
                raise RefusedError("the proxy's token is not valid here") from None
        name = claims.get(self.policy.claim)
        if not isinstance(name, str):
            raise RefusedError(f"the proxy's token has no claim {self.policy.claim}")
        return name

    def _verified(self, value: str, keys: KeySet) -> Mapping[str, Any]:
        try:
            token = jwt.decode(value, keys, algorithms=ALGORITHMS)
            self._claims.validate(token.claims)
            return dict(token.claims)
        except Exception:  # Whoever asks writes the token: it may make the library raise anything.
            raise ValueError("not a token of these keys") from None

    async def _newer(self) -> KeySet:
        # Who comes while the keys are fetched waits for them.
        async with self._fetching:
            return await self._fetched()

    async def _fetched(self) -> KeySet:
        due = self._clock() - self._read_at >= KEYS_SECONDS
        if due:
            self._read_at = self._clock()
            try:
                self._keys = await self._fetch()
                self._fetched_at = self._clock()
            except (httpx.HTTPError, TimeoutError, SettingsError) as error:
                if self._keys is None or self._are_stale():
                    raise RefusedError("the proxy's keys cannot be read now") from error
        if self._keys is None or self._are_stale():
            raise RefusedError("the proxy's keys cannot be read now")
        return self._keys

    def _are_stale(self) -> bool:
        return self._clock() - self._fetched_at >= KEYS_STALE_SECONDS

    async def _fetch(self) -> KeySet:
        if self.policy.jwks_file is not None:
            return _key_set(self.policy.jwks_file.name, read_text(self.policy.jwks_file))
        url = self.policy.jwks_url or ""
        try:
            async with (
                asyncio.timeout(FETCH_SECONDS),
                http_client("console.identity.jwt.jwks_url", timeout=FETCH_SECONDS) as client,
                client.stream("GET", url) as answer,
            ):
                answer.raise_for_status()
                packed = answer.headers.get("content-encoding", "")
                raw = await read_answer(answer.aiter_raw(), MAX_KEYS_BYTES, packed)
        except AnswerError as error:
            raise SettingsError(f"console.identity.jwt.jwks_url: {error}") from None
        return _key_set(url, raw.decode(errors="replace"))


def _key_set(source: str, text: str) -> KeySet:
    try:
        keys = KeySet.import_key_set(json.loads(text))
    except Exception:  # See _verified.
        raise SettingsError(f"{source}: not a JSON Web Key Set") from None
    if any(key.key_type == "oct" for key in keys.keys):
        raise SettingsError(f"{source}: holds a shared secret; expected public keys only")
    return keys
