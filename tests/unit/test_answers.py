"""What a server answers is read up to a limit, in time linear in it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ares_stream.files import AnswerTooLarge, read_answer


async def served(parts: Sequence[bytes], given_out: list[bytes]) -> AsyncIterator[bytes]:
    for part in parts:
        given_out.append(part)
        yield part


@given(st.lists(st.binary(max_size=8)), st.integers(0, 60))
async def test_an_answer_is_its_parts_or_too_large(parts: list[bytes], limit: int) -> None:
    whole = b"".join(parts)
    if len(whole) <= limit:
        assert await read_answer(served(parts, []), limit) == whole
    else:
        with pytest.raises(AnswerTooLarge):
            await read_answer(served(parts, []), limit)


async def test_nothing_is_read_behind_the_limit() -> None:
    given_out: list[bytes] = []
    with pytest.raises(AnswerTooLarge):
        await read_answer(served([b"12", b"34", b"56", b"78"], given_out), 3)
    assert given_out == [b"12", b"34"]
