"""From an interaction to token ids: the bundle's templates, its tokenizer, its truncation.

What is cut is the beginning of the conversation; the response stays whole as long as it can,
since it is what is judged.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

# Set before the import: threads of our own tokenise, and a fork after use would dead-lock.
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

from tokenizers import Encoding, Tokenizer

from ares_stream.errors import BundleError, ScoringError
from ares_stream.models.bundles import Bundle
from ares_stream.records.interaction import Interaction
from ares_stream.scoring.templates import compile_template

CHARACTERS_PER_TOKEN: Final = 24
"""No tokenizer makes so few tokens of natural text: longer text cannot fit and is cut before it
is tokenised, so that a 10 MB message costs what a long one costs."""
MIN_FIRST_TOKENS: Final = 16
"""Of a pair, this much of the conversation stays however long the response is."""

UNREADABLE: Final = "the model's tokenizer has no tokens for this conversation"


@dataclass(frozen=True, slots=True)
class Tokens:
    """One input: ids and segment ids, both of shape [length]."""

    ids: npt.NDArray[np.int64]
    types: npt.NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.ids)


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
        try:
            self._first = compile_template(template.first)
            self._second = compile_template(template.second) if template.second else None
        except BundleError as error:
            raise BundleError(f"{bundle.path}: {error}") from None
        self._limit = template.max_length
        self._special_one = self._tokenizer.num_special_tokens_to_add(False)
        self._special_two = self._tokenizer.num_special_tokens_to_add(True)

    def encode(self, inputs: Sequence[tuple[Interaction, str]]) -> list[Tokens | ScoringError]:
        """Tokens of each (interaction, answer to it), in order. Releases the GIL."""
        rendered = [self._render(interaction, answer) for interaction, answer in inputs]
        good = [item for item in rendered if not isinstance(item, ScoringError)]
        longest = self._limit * CHARACTERS_PER_TOKEN
        pairs = self._second is not None
        firsts = iter(self._tokenize([first[-longest:] for first, _ in good]))
        seconds = iter(self._tokenize([second[:longest] for _, second in good]) if pairs else ())
        tokens: list[Tokens | ScoringError] = []
        for item in rendered:
            if isinstance(item, ScoringError):
                tokens.append(item)
            elif pairs:
                tokens.append(self._join(next(firsts), next(seconds)))
            else:
                tokens.append(self._alone(next(firsts)))
        return tokens

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
            return ScoringError(str(error))  # Without the traceback, which holds the conversation.
        return first, second

    def _join(self, first: Encoding | None, second: Encoding | None) -> Tokens | ScoringError:
        if first is None or second is None:
            return ScoringError(UNREADABLE)
        room = self._limit - self._special_two
        if len(first) + len(second) > room:
            second.truncate(max(1, room - min(len(first), MIN_FIRST_TOKENS)), direction="right")
            first.truncate(max(0, room - len(second)), direction="left")
        return _tokens(self._tokenizer.post_process(first, second))

    def _alone(self, first: Encoding | None) -> Tokens | ScoringError:
        if first is None:
            return ScoringError(UNREADABLE)
        first.truncate(self._limit - self._special_one, direction="left")
        return _tokens(self._tokenizer.post_process(first))


def _tokens(encoding: Encoding) -> Tokens | ScoringError:
    if not encoding.ids:
        return ScoringError("the model's input template leaves no text of this conversation")
    return Tokens(
        np.asarray(encoding.ids, dtype=np.int64), np.asarray(encoding.type_ids, dtype=np.int64)
    )
