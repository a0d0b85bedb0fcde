"""Token ids of plain ASCII text by looking its words up.

A BERT tokenizer cuts text into words and each word into pieces, without regard to its neighbours.
The tokenizers library does both for every word of every text; of a word that was met before the
pieces are known. Text that could be read in any other way (letters beyond ASCII, control
characters, what looks like a special token) is left to the library.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from typing import Any, Final

import numpy as np
from tokenizers import Tokenizer

from ares_stream.scoring.framing import Ids

MOST_WORDS: Final = 1 << 15
"""Known at once, in some megabytes; then all are forgotten, and the frequent ones met again."""
LONGEST: Final = 64
"""Characters of a word that is looked up: invented ones must not fill the memory."""
MOST_ADDED: Final = 64
"""Tokens beside the vocabulary that are looked for in each text."""
_APART: Final = {
    code: f" {chr(code)} " for code in range(ord("!"), ord("~") + 1) if not chr(code).isalnum()
}
"""BERT's words in printable ASCII: runs of letters and digits, and punctuation one by one."""
_OTHER: Final = re.compile(r"[^\t\n\r -~]")


class Words:
    """Reads texts as a BERT tokenizer does. May be used by several threads."""

    def __init__(self, tokenizer: Tokenizer, *, lowercase: bool, added: Sequence[str]) -> None:
        self._tokenizer = tokenizer
        self._lowercase = lowercase
        self._added = tuple(token.lower() for token in added)
        self._known: dict[str, bytes] = {}
        """Of each word its ids as 64-bit integers: a text's ids are its words' bytes, joined."""

    @classmethod
    def of(cls, tokenizer: Tokenizer) -> Words | None:
        """None for a tokenizer that reads words in another way."""
        known: dict[str, Any] = json.loads(tokenizer.to_str())
        normalizer, splitter = known["normalizer"], known["pre_tokenizer"]
        added = [item["content"] for item in known["added_tokens"]]
        if (
            known["model"]["type"] != "WordPiece"
            or normalizer is None
            or normalizer["type"] != "BertNormalizer"
            or splitter is None
            or splitter["type"] != "BertPreTokenizer"
            or len(added) > MOST_ADDED
            or not all(added)
        ):
            return None
        return cls(tokenizer, lowercase=normalizer["lowercase"], added=added)

    def ids(self, texts: Sequence[str]) -> list[Ids | None]:
        """The ids of each text, without special tokens; None where the library must read it."""
        split = [self._split(text) for text in texts]
        known = self._known
        met = set().union(*(words for words in split if words)) - known.keys()
        if too_long := {word for word in met if len(word) > LONGEST}:
            met -= too_long
            split = [None if words and not too_long.isdisjoint(words) else words for words in split]
        if met:
            try:
                found = self._tokenizer.encode_batch_fast(list(met), add_special_tokens=False)
            except Exception:  # tokenizers raises bare Exception, where it has no token for a word
                return [None] * len(texts)
            packed = (np.asarray(item.ids, np.int64).tobytes() for item in found)
            known.update(zip(met, packed, strict=True))
        ids = [
            None
            if words is None
            else np.frombuffer(b"".join(map(known.__getitem__, words)), np.int64)
            for words in split
        ]
        if len(known) > MOST_WORDS:
            # Another one: threads that read now keep theirs.
            self._known = {}
        return ids

    def _split(self, text: str) -> list[str] | None:
        # Most texts are printable as a whole; line ends and tabs are not.
        if not text.isascii() or not (text.isprintable() or _OTHER.search(text) is None):
            return None
        lower = text.lower()
        if any(token in lower for token in self._added):
            return None
        return (lower if self._lowercase else text).translate(_APART).split()
