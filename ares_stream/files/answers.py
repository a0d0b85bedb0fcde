"""What a server answers, in bounded memory."""

from __future__ import annotations

from collections.abc import AsyncIterable


class AnswerTooLarge(Exception):
    """An answer is longer than it may be; nothing more of it is read."""


async def read_answer(parts: AsyncIterable[bytes], limit: int) -> bytes:
    """All of an answer of up to `limit` bytes, in time linear in it however small its parts are.
    Raises AnswerTooLarge."""
    content = bytearray()
    async for part in parts:
        content += part
        if len(content) > limit:
            raise AnswerTooLarge
    return bytes(content)
