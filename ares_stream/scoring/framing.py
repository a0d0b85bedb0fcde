"""The special tokens that a tokenizer puts around one text or a pair, and their segment ids.

The tokenizers library frames an encoding together with all that was cut from it, and pairs every
piece of one side with every piece of the other: quadratic in the text. Here the frame is read
from short texts once, and put around ids that were cut before: linear in what the model reads.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Final

import numpy as np
import numpy.typing as npt
from tokenizers import Encoding, Tokenizer

Ids = npt.NDArray[np.int64]

SAMPLES: Final = 4
"""Texts that the frame is read from: a special token may look like one of them, not like all."""
CANDIDATES: Final = ("a", "the", "0", ".", "A", "x", "1", "!")
_NOTHING: Final = np.zeros(0, np.int64)


@dataclass(frozen=True)
class Frame:
    """ids = before, first text, between, second text, after; types are the segment ids of the
    five parts. A single text has nothing `between` and no second text."""

    before: Ids
    between: Ids
    after: Ids
    types: tuple[Ids, int, Ids, int, Ids]

    @property
    def size(self) -> int:
        """Number of special tokens."""
        return len(self.before) + len(self.between) + len(self.after)

    def around(self, first: Ids, second: Ids | None = None) -> tuple[Ids, Ids]:
        """Ids and segment ids, both of shape [size + len(first) + len(second)]."""
        if second is None:
            second = _NOTHING
        values, before, between, after = self._segments
        counts = (*before, len(first), *between, len(second), *after)
        return (
            np.concatenate((self.before, first, self.between, second, self.after)),
            np.repeat(values, counts),
        )

    @cached_property
    def _segments(self) -> tuple[Ids, tuple[int, ...], tuple[int, ...], tuple[int, ...]]:
        """The segment id of every special token and of both texts, and a 1 for each special token
        of the three places."""
        before, one, between, two, after = self.types
        values = np.concatenate((before, [one], between, [two], after))
        return values, (1,) * len(before), (1,) * len(between), (1,) * len(after)


def read_frames(tokenizer: Tokenizer) -> tuple[Frame, Frame]:
    """The frame of one text, and that of a pair.

    Raises ValueError when the tokenizer has no tokens for any short text, or does something else
    with texts than to put special tokens around them in their order.
    """
    samples = list(_samples(tokenizer))
    if len(samples) < 2:
        raise ValueError("it has no tokens for any short text")
    single = _read(
        [([one], tokenizer.post_process(one)) for one in samples],
    )
    pair = _read(
        [
            ([one, two], tokenizer.post_process(one, two))
            for one, two in zip(samples, reversed(samples), strict=True)
        ]
    )
    if single is None or pair is None:
        raise ValueError("it does more than to put special tokens around the texts in their order")
    return single, pair


def _samples(tokenizer: Tokenizer) -> Iterator[Encoding]:
    """Encodings of short texts, no two alike."""
    size = tokenizer.get_vocab_size()
    known = (tokenizer.id_to_token(index) for index in range(min(size, 512)))
    seen: set[tuple[int, ...]] = set()
    for text in (*CANDIDATES, *known):
        if text is None:
            continue
        try:
            encoding = tokenizer.encode(text, add_special_tokens=False)
        except Exception:  # noqa: S112 - tokenizers raises bare Exception where it has no token
            continue
        ids = tuple(encoding.ids)
        if ids and ids not in seen:
            seen.add(ids)
            yield encoding
        if len(seen) == SAMPLES:
            return
    if len(seen) == 1:  # A vocabulary of one token: the text and its double differ in length.
        yield tokenizer.encode(f"{text} {text}", add_special_tokens=False)


def _read(samples: Sequence[tuple[list[Encoding], Encoding]]) -> Frame | None:
    """The frame that all the samples show."""
    possible: set[tuple[int, int]] | None = None
    for texts, whole in samples:
        places = set(_places([item.ids for item in texts], whole.ids))
        possible = places if possible is None else possible & places
    if not possible:
        return None
    start, gap = min(possible)
    texts, whole = samples[0]
    ids, types = np.asarray(whole.ids, np.int64), np.asarray(whole.type_ids, np.int64)
    one = start + len(texts[0])
    two = one + gap
    end = two + (len(texts[1]) if len(texts) > 1 else 0)
    return Frame(
        before=ids[:start],
        between=ids[one:two],
        after=ids[end:],
        types=(
            types[:start],
            int(types[start]),
            types[one:two],
            int(types[two]) if len(texts) > 1 else 0,
            types[end:],
        ),
    )


def _places(texts: list[list[int]], whole: list[int]) -> Iterator[tuple[int, int]]:
    """(tokens before the first text, tokens between the two) of every way to find the texts."""
    extra = len(whole) - sum(map(len, texts))
    for start in range(extra + 1):
        one = start + len(texts[0])
        if whole[start:one] != texts[0]:
            continue
        if len(texts) == 1:
            yield start, 0
            continue
        for gap in range(extra - start + 1):
            if whole[one + gap : one + gap + len(texts[1])] == texts[1]:
                yield start, gap
