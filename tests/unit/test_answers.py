"""What a server answers is read up to a limit, in time linear in it."""

from __future__ import annotations

import gzip
import zlib
from collections.abc import AsyncIterator, Callable, Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ares_stream.files import AnswerError, AnswerTooLarge, read_answer


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


def bare(content: bytes) -> bytes:
    packer = zlib.compressobj(wbits=-zlib.MAX_WBITS)
    return packer.compress(content) + packer.flush()


PACKED: dict[str, tuple[str, Callable[[bytes], bytes]]] = {
    "gzip": ("gzip", gzip.compress),
    "gzip by its old name": (" X-GZIP ", gzip.compress),
    "deflate": ("deflate", zlib.compress),
    "deflate without a frame": ("deflate", bare),
    "identity": ("identity", bytes),
}


def cut(content: bytes, size: int) -> list[bytes]:
    return [content[start : start + size] for start in range(0, len(content), size)]


@given(st.sampled_from(sorted(PACKED)), st.binary(max_size=300), st.integers(1, 40))
async def test_a_packed_answer_is_what_was_packed_in_whatever_parts(
    name: str, content: bytes, size: int
) -> None:
    encoding, pack = PACKED[name]
    parts = cut(pack(content), size)
    assert await read_answer(served(parts, []), 300, encoding) == content


@pytest.mark.parametrize("name", PACKED)
@pytest.mark.parametrize("limit", [0, 1, 9_999])
async def test_the_limit_is_of_what_is_unpacked_and_nothing_is_read_behind_it(
    name: str, limit: int
) -> None:
    encoding, pack = PACKED[name]
    given_out: list[bytes] = []
    parts = [*cut(pack(bytes(10_000)), 64), b"never read"]
    with pytest.raises(AnswerTooLarge, match="more than"):
        await read_answer(served(parts, given_out), limit, encoding)
    assert given_out[-1] != b"never read"


@pytest.mark.parametrize("encoding", ["br", "zstd", "gzip, br", "compress", "x" * 5000])
async def test_an_encoding_that_was_not_asked_for_is_named(encoding: str) -> None:
    with pytest.raises(AnswerError, match="which was not asked for") as caught:
        await read_answer(served([b"x"], []), 10, encoding)
    assert len(str(caught.value)) < 100


@given(st.sampled_from(["gzip", "deflate"]), st.lists(st.binary(max_size=9), max_size=5))
async def test_any_bytes_are_unpacked_or_an_error(encoding: str, parts: list[bytes]) -> None:
    try:
        assert len(await read_answer(served(parts, []), 1000, encoding)) <= 1000
    except AnswerError:
        return
