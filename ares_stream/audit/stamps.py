"""RFC 3161 time stamps of signed heads: a third party says that a head stood at a time.

The notary could date its own heads as it likes. An authority that knows nothing of it signs the
SHA-256 of the note with the time (RFC 3161 section 2.4); whoever trusts the authority's root
certificate knows that the head, and so every record under it, is not younger.
"""

from __future__ import annotations

import asyncio
import contextlib
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import httpx
from cryptography.x509 import Certificate, load_pem_x509_certificates

from ares_stream.endpoints.client import http_client
from ares_stream.errors import AresError, IntegrityError, SettingsError, StampError
from ares_stream.files import AnswerError, read_answer, read_text

if TYPE_CHECKING:
    from collections.abc import Sequence

MAX_TOKEN_BYTES: Final = 64 << 10
"""A token with its certificates has some 5 KiB."""
MAX_ROOTS_BYTES: Final = 1 << 20
AT_ONCE: Final = 8
"""Questions in flight: public authorities refuse who asks for more."""


class Stamps:
    """Checks tokens against root certificates."""

    def __init__(self, roots: Sequence[Certificate]) -> None:
        self._library = _library()
        self._roots = list(roots)

    @classmethod
    def of(cls, file: Path) -> Stamps:
        """The roots of a PEM file. Raises SettingsError."""
        text = read_text(file, limit=MAX_ROOTS_BYTES)
        try:
            roots = load_pem_x509_certificates(text.encode())
        except ValueError:
            raise SettingsError(f"{file}: holds no certificate in PEM") from None
        return cls(roots)

    def request(self, note: str) -> tuple[bytes, int]:
        """The question to an authority, in DER: SHA-256 of the note; and its nonce."""
        library = self._library
        builder = library.TimestampRequestBuilder().data(note.encode())
        made = builder.hash_algorithm(library.HashAlgorithm.SHA256).build()
        return made.as_bytes(), made.nonce

    def checked(self, note: str, token: bytes, nonce: int | None = None) -> datetime:
        """The time that an authority under the roots put on the note; `nonce` is that of the
        question, where it is known. Raises IntegrityError."""
        library = self._library
        try:
            answer = library.decode_timestamp_response(token)
            builder = library.VerifierBuilder()
            for root in self._roots:
                builder = builder.add_root_certificate(root)
            if nonce is not None:
                builder = builder.nonce(nonce)
            builder.build().verify_message(answer, note.encode())
            made: datetime = answer.tst_info.gen_time
        except (library.VerificationError, ValueError) as error:
            raise IntegrityError(f"the time stamp does not hold: {error}") from None
        return made if made.tzinfo else made.replace(tzinfo=UTC)


class StampAuthority:
    """Asks an authority for time stamps."""

    def __init__(self, url: str, roots: Path, seconds: float) -> None:
        self._url = url
        self._seconds = seconds
        self._stamps = Stamps.of(roots)

    async def stamp(self, note: str) -> bytes:
        """A token that was checked against the roots. Raises StampError where the authority does
        not answer, IntegrityError where its answer does not hold."""
        (found,) = await self.stamp_all([note])
        if isinstance(found, AresError):
            raise found
        return found

    async def stamp_all(self, notes: Sequence[str]) -> list[bytes | StampError | IntegrityError]:
        """A token of each note, or why it has none, all within the time-out: through one
        connection pool, a few at a time. After the first failure no further one is asked for."""
        found: list[bytes | StampError | IntegrityError] = [
            StampError(f"no answer within {self._seconds:.0f} s") for _ in notes
        ]
        turns = asyncio.Semaphore(AT_ONCE)
        failed: list[str] = []

        async def ask(client: httpx.AsyncClient, place: int, note: str) -> None:
            async with turns:
                if failed:
                    found[place] = StampError(f"not asked for: {failed[0]}")
                    return
                try:
                    found[place] = await self._asked(client, note)
                except (StampError, IntegrityError) as error:
                    found[place] = error
                    failed.append(str(error))

        with contextlib.suppress(TimeoutError):
            async with (
                asyncio.timeout(self._seconds),
                http_client("notary.stamps", timeout=self._seconds) as client,
                asyncio.TaskGroup() as group,
            ):
                for place, note in enumerate(notes):
                    group.create_task(ask(client, place, note))
        return found

    async def _asked(self, client: httpx.AsyncClient, note: str) -> bytes:
        question, nonce = self._stamps.request(note)
        try:
            async with (
                client.stream(
                    "POST", self._url, content=question,
                    headers={"content-type": "application/timestamp-query"},
                ) as answer,
            ):  # fmt: skip
                if answer.status_code != httpx.codes.OK:
                    raise StampError(f"the authority answered {answer.status_code}")
                packed = answer.headers.get("content-encoding", "")
                token = await read_answer(answer.aiter_raw(), MAX_TOKEN_BYTES, packed)
        except AnswerError as error:
            raise StampError(f"the authority {error}") from None
        except httpx.TimeoutException:
            raise StampError(f"no answer within {self._seconds:.0f} s") from None
        except httpx.HTTPError as error:
            raise StampError(f"cannot be reached: {type(error).__name__}") from None
        self._stamps.checked(note, token, nonce)
        return token


def _library() -> Any:
    try:
        import rfc3161_client
    except ImportError:
        raise SettingsError(
            "time stamps need the extra `timestamps`: pip install 'ares-stream[timestamps]'"
        ) from None
    return rfc3161_client
