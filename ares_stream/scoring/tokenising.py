"""From an interaction to token ids: the bundle's templates, its tokenizer, its truncation.

What is cut is the beginning of the conversation; the response stays whole as long as it can,
since it is what is judged. With windows, a response that does not fit is read in stretches, and
what is encoded in it is read decoded as well.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Final

import numpy as np

# Set before the import: threads of our own tokenise, and a fork after use would dead-lock.
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

from tokenizers import Encoding, Tokenizer

from ares_stream.errors import BundleError, ScoringError
from ares_stream.models.bundles import Bundle
from ares_stream.records.interaction import Interaction
from ares_stream.scoring.encodings import hidden_texts
from ares_stream.scoring.framing import Ids, read_frames
from ares_stream.scoring.templates import compile_template
from ares_stream.scoring.words import Words

CHARACTERS_PER_TOKEN: Final = 24
"""No tokenizer makes so few tokens of natural text: longer text cannot fit and is cut before it
is tokenised, so that a 10 MB message costs what a long one costs."""
USUAL_CHARACTERS_PER_TOKEN: Final = 8
"""Most texts make more tokens than this says: so much of a long one is tokenised at first, and
the rest only where that did not give the tokens that the model reads."""
SPARE_TOKENS: Final = 8
"""Tokens beside a cut may differ from those of the whole text: so many more are asked for."""
CONTEXT_SHARE: Final = 3
"""With windows, one in so many tokens at most is left to what stands around the answer."""
EDGE_TOKENS: Final = 4
MIN_FIRST_TOKENS: Final = 16
"""Of a pair, this much of the conversation stays however long the response is."""

Input = tuple[Interaction, str]
"""An interaction and an answer to it, which need not be the policy's."""

_BEGIN: Final = re.compile(r'\{% set bos_token = ("(?:[^"\\]|\\.)+") %\}')

UNREADABLE: Final = "the model's tokenizer has no tokens for this conversation"


@dataclass(frozen=True, slots=True)
class Tokens:
    """One input: ids and segment ids, both of shape [length]."""

    ids: Ids
    types: Ids

    def __len__(self) -> int:
        return len(self.ids)


@dataclass(frozen=True, slots=True)
class Reading:
    """An answer as a model reads it: in one window where it fits.

    `decoded` are windows of what was encoded in it by the `encodings`; `unread` counts the
    characters behind the last window, of the answer and of what was decoded; `answer` is the
    text itself.
    """

    windows: tuple[Tokens, ...]
    decoded: tuple[Tokens, ...] = ()
    encodings: tuple[str, ...] = ()
    unread: int = 0
    answer: str = ""


class InputEncoder:
    """Turns (messages, response) into tokens as one bundle wants them. Thread-safe."""

    def __init__(self, bundle: Bundle) -> None:
        template = bundle.manifest.template
        try:
            self._tokenizer: Tokenizer = Tokenizer.from_file(str(bundle.tokenizer))
        except Exception as error:  # tokenizers raises bare Exception
            raise BundleError(f"{bundle.tokenizer}: not a tokenizer: {error}") from None
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        self._words = Words.of(self._tokenizer)
        try:
            self._first = compile_template(template.first)
            self._second = compile_template(template.second) if template.second else None
        except BundleError as error:
            raise BundleError(f"{bundle.path}: {error}") from None
        try:
            self._single, self._pair = read_frames(self._tokenizer)
        except ValueError as error:
            raise BundleError(f"{bundle.tokenizer}: cannot be used: {error}") from None
        special = (self._pair if self._second else self._single).size
        self._room = template.max_length - special
        if self._room < 2:
            raise BundleError(
                f"{bundle.path}: template.max_length {template.max_length} leaves no room for "
                f"text beside {special} special tokens"
            )
        self._begin = beginning_token(template.first)
        self._windows = template.windows
        self._longest = template.max_length * CHARACTERS_PER_TOKEN

    def read(self, inputs: Sequence[Input]) -> list[Reading | ScoringError]:
        """Each (interaction, answer to it) as the model reads it, in order.

        Time and memory are linear in what the model can read, whatever the text's length.
        """
        found = self._encode(inputs)
        readings: list[Reading | ScoringError] = [
            tokens if isinstance(tokens, ScoringError) else Reading((tokens,), answer=answer)
            for (tokens, _), (_, answer) in zip(found, inputs, strict=True)
        ]
        if self._windows is None:
            return readings
        for place, (interaction, answer) in enumerate(inputs):
            plain = readings[place]
            if isinstance(plain, ScoringError):
                continue
            hidden = hidden_texts(answer)
            if found[place][1] or hidden:
                readings[place] = self._read_closely(interaction, answer, plain, hidden)
        return readings

    def unknown_share(self, reading: Reading) -> float:
        """Of an answer's windows, the share of tokens that stand for what the tokenizer does not
        know."""
        if not self._unknown:
            return 0.0
        windows = (*reading.windows, *reading.decoded)
        found = sum(int(np.isin(tokens.ids, self._unknown).sum()) for tokens in windows)
        return found / sum(map(len, windows))

    @cached_property
    def _unknown(self) -> list[int]:
        model = json.loads(self._tokenizer.to_str())["model"]
        named = model.get("unk_token")
        ids = (model.get("unk_id"), None if named is None else self._tokenizer.token_to_id(named))
        return sorted({item for item in ids if item is not None})

    def encode(self, inputs: Sequence[Input]) -> list[Tokens | ScoringError]:
        """Tokens of each (interaction, answer to it) in one window, in order."""
        return [tokens for tokens, _ in self._encode(inputs)]

    def _encode(self, inputs: Sequence[Input]) -> list[tuple[Tokens | ScoringError, bool]]:
        """Tokens, and whether some of the answer did not fit or too little of the rest."""
        rendered = [self._render(interaction, answer) for interaction, answer in inputs]
        good = [item for item in rendered if not isinstance(item, ScoringError)]
        framed = iter(self._alone(good) if self._second is None else self._join(good))
        return [
            (item, False) if isinstance(item, ScoringError) else next(framed) for item in rendered
        ]

    def _read_closely(
        self,
        interaction: Interaction,
        answer: str,
        plain: Reading,
        hidden: Sequence[tuple[str, str]],
    ) -> Reading | ScoringError:
        texts = [answer, *(text for _, text in hidden)]
        cut = [self._stretches(interaction, text) for text in texts]
        stretches = [stretch for several, _ in cut for stretch in several]
        tokens: list[Tokens] = []
        for found in self.encode([(interaction, stretch) for stretch in stretches]):
            if isinstance(found, ScoringError):
                return found
            tokens.append(found)
        own = len(cut[0][0])
        return Reading(
            windows=tuple(tokens[:own]) if own > 1 else plain.windows,
            decoded=tuple(tokens[own:]),
            encodings=tuple(name for name, _ in hidden),
            unread=sum(unread for _, unread in cut),
            answer=answer,
        )

    def _stretches(self, interaction: Interaction, text: str) -> tuple[list[str], int]:
        """The text in stretches that overlap, and how many characters are behind the last."""
        assert self._windows is not None  # noqa: S101 - only asked where there are windows
        size = self._room - self._context(interaction)
        step = max(1, size - round(size * self._windows.overlap))
        reach = size + (self._windows.most - 1) * step
        offsets = self._offsets(text, reach + 1)
        if len(offsets) <= size:
            return [text], 0
        stretches: list[str] = []
        start = end = 0
        for number in range(self._windows.most):
            end = min(number * step + size, len(offsets))
            start = end - size if self._windows.last == "whole" else number * step
            stretches.append(text[_word(text, offsets[start][0]) : offsets[end - 1][1]])
            if end == len(offsets):
                break
        return stretches, len(text.rstrip()) - offsets[end - 1][1]

    def _context(self, interaction: Interaction) -> int:
        """Tokens that stay for everything but the answer: a third at most."""
        most = self._room // CONTEXT_SHARE
        around = self._render(interaction, "")
        if isinstance(around, ScoringError):  # It refuses an answer without text.
            return most
        (ids,) = self._ends([around[0]], [most])
        # Beside the edge of a single text tokens merge otherwise than in it.
        spare = 0 if self._second is not None else EDGE_TOKENS
        return (most if ids is None else len(ids)) + spare

    def _offsets(self, text: str, needed: int) -> list[tuple[int, int]]:
        """(first character, character behind the last) of the text's first tokens."""
        size = (needed + SPARE_TOKENS) * USUAL_CHARACTERS_PER_TOKEN
        found: list[tuple[int, int]] = []
        for part in (_beginning(text, size), text[: needed * CHARACTERS_PER_TOKEN]):
            # With offsets, which the fast call leaves out. It has tokens: all of it was encoded.
            found = self._tokenizer.encode(part, add_special_tokens=False).offsets
            if len(found) >= needed + SPARE_TOKENS or len(part) == len(text):
                break
        return found[:needed]

    def _join(self, texts: Sequence[tuple[str, str]]) -> list[tuple[Tokens | ScoringError, bool]]:
        """Pairs: the response keeps its beginning, the conversation its end."""
        room = self._room
        # One token more than there is room for, of either, tells that something was cut.
        seconds = self._beginnings([second for _, second in texts], room + 1)
        needed = [
            0 if second is None else max(room + 1 - len(second), min(room, MIN_FIRST_TOKENS))
            for second in seconds
        ]
        firsts = self._ends([first for first, _ in texts], needed)
        return [self._paired(*pair) for pair in zip(firsts, seconds, strict=True)]

    def _paired(self, first: Ids | None, second: Ids | None) -> tuple[Tokens | ScoringError, bool]:
        if first is None or second is None:
            return ScoringError(UNREADABLE), False
        room = self._room
        cut = len(second) + min(len(first), room // CONTEXT_SHARE) > room
        second = second[: max(1, room - min(len(first), MIN_FIRST_TOKENS))]
        first = first[max(0, len(first) + len(second) - room) :]
        return _tokens(*self._pair.around(first, second)), cut

    def _alone(self, texts: Sequence[tuple[str, str]]) -> list[tuple[Tokens | ScoringError, bool]]:
        found: list[tuple[Tokens | ScoringError, bool]] = []
        room = self._room
        cut = self._ends([text for text, _ in texts], [room + 1] * len(texts))
        for ids, (text, _) in zip(cut, texts, strict=True):
            if ids is None:
                found.append((ScoringError(UNREADABLE), False))
            else:
                kept = ids[max(0, len(ids) - room) :]
                if len(ids) > room and self._begin and text.startswith(self._begin):
                    # A model that was trained with a beginning token misreads a text without.
                    begin = self._tokenizer.token_to_id(self._begin)
                    if begin is not None:
                        kept = np.concatenate(([begin], kept[1:]))
                found.append((_tokens(*self._single.around(kept)), len(ids) > room))
        return found

    def _beginnings(self, texts: Sequence[str], needed: int) -> list[Ids | None]:
        """The first `needed` tokens of each text, or all; None where there are no tokens for it."""
        size = (needed + SPARE_TOKENS) * USUAL_CHARACTERS_PER_TOKEN
        texts = [text[: self._longest] for text in texts]
        found = self._ids([_beginning(text, size) for text in texts])
        short = [
            place
            for place, (ids, text) in enumerate(zip(found, texts, strict=True))
            if len(text) > size and (ids is None or len(ids) < needed + SPARE_TOKENS)
        ]
        for place, ids in zip(short, self._ids([texts[place] for place in short]), strict=True):
            found[place] = ids
        return [None if ids is None else ids[:needed] for ids in found]

    def _ends(self, texts: Sequence[str], needed: Sequence[int]) -> list[Ids | None]:
        """The last tokens of each text, as many as needed of it; None where it has none."""
        sizes = [(count + SPARE_TOKENS) * USUAL_CHARACTERS_PER_TOKEN for count in needed]
        texts = [text[-self._longest :] for text in texts]
        found = self._ids([_end(text, size) for text, size in zip(texts, sizes, strict=True)])
        short = [
            place
            for place, ids in enumerate(found)
            if len(texts[place]) > sizes[place]
            and (ids is None or len(ids) < needed[place] + SPARE_TOKENS)
        ]
        for place, ids in zip(short, self._ids([texts[place] for place in short]), strict=True):
            found[place] = ids
        return [
            None if ids is None else ids[max(0, len(ids) - count) :]
            for ids, count in zip(found, needed, strict=True)
        ]

    def _ids(self, texts: Sequence[str]) -> list[Ids | None]:
        found: list[Ids | None] = [None] * len(texts)
        if self._words is not None:
            found = self._words.ids(texts)
        others = [place for place, ids in enumerate(found) if ids is None]
        if others:
            encodings = self._tokenize([texts[place] for place in others])
            for place, encoding in zip(others, encodings, strict=True):
                found[place] = None if encoding is None else np.asarray(encoding.ids, np.int64)
        return found

    def _tokenize(self, texts: Sequence[str]) -> list[Encoding | None]:
        """Without special tokens; None for a text the tokenizer has no tokens for."""
        try:
            return list(self._tokenizer.encode_batch_fast(texts, add_special_tokens=False))
        except Exception:  # tokenizers raises bare Exception, for the batch as a whole
            if len(texts) == 1:
                return [None]
            middle = len(texts) // 2
            return [*self._tokenize(texts[:middle]), *self._tokenize(texts[middle:])]

    def _render(self, interaction: Interaction, answer: str) -> tuple[str, str] | ScoringError:
        try:
            first = self._first(interaction, answer)
            second = self._second(interaction, answer) if self._second else ""
        except ScoringError as error:
            # Without the traceback, which holds the conversation.
            return ScoringError(error.unmasked)
        return first, second


def beginning_token(template: str) -> str | None:
    """The token that the template writes first of all, as `with_special_tokens` names it."""
    found = _BEGIN.search(template)
    return None if found is None else str(json.loads(found[1]))


def _word(text: str, start: int) -> int:
    """Where the next word begins, unless `start` begins one or none is near."""
    if start == 0 or text[start - 1].isspace():
        return start
    space = text.find(" ", start, start + CHARACTERS_PER_TOKEN)
    return start if space < 0 else space + 1


def _beginning(text: str, size: int) -> str:
    """About so many characters, up to a space; all of it where none is near."""
    if len(text) <= size:
        return text
    space = text.rfind(" ", size // 2, size)
    return text if space < 0 else text[:space]


def _end(text: str, size: int) -> str:
    """About so many characters, from a space on; all of it where none is near."""
    if len(text) <= size:
        return text
    start = len(text) - size
    space = text.find(" ", start, start + size // 2)
    return text if space < 0 else text[space:]


def _tokens(ids: Ids, types: Ids) -> Tokens | ScoringError:
    if not len(ids):
        return ScoringError("the model's input template leaves no text of this conversation")
    return Tokens(ids, types)
