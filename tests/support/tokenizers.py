"""Small tokenizers of every kind that classifiers use, learnt from invented words."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import numpy as np
from tokenizers import (
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)

SPECIAL: Final = ["<pad>", "<unk>", "<s>", "</s>"]


def corpus(lines: int = 400) -> list[str]:
    """Sentences of invented words, with numbers, punctuation and other scripts among them."""
    random = np.random.default_rng(0)
    parts = ["ba", "re", "ti", "lo", "mun", "sor", "ka", "ve", "été", "ßu", "дом", "水", "🙂"]
    words = ["".join(random.choice(parts, random.integers(1, 4))) for _ in range(300)]
    words += ["12", "3.5", "a,", "b!", "(c)", "x-y"]
    return [" ".join(random.choice(words, random.integers(1, 30))) for _ in range(lines)]


def word_piece() -> Tokenizer:
    """As BERT's: segments 0 and 1."""
    tokenizer = Tokenizer(models.WordPiece(unk_token="<unk>"))
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    trainer = trainers.WordPieceTrainer(vocab_size=600, special_tokens=SPECIAL, show_progress=False)
    tokenizer.train_from_iterator(corpus(), trainer)
    tokenizer.post_processor = processors.BertProcessing(("</s>", 3), ("<s>", 2))
    return tokenizer


def byte_pairs() -> Tokenizer:
    """As RoBERTa's and GPT-2's: bytes, two separators between a pair, one segment."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=700,
        special_tokens=SPECIAL,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(corpus(), trainer)
    tokenizer.post_processor = processors.RobertaProcessing(("</s>", 3), ("<s>", 2))
    return tokenizer


def unigram() -> Tokenizer:
    """As T5's and XLM-R's: pieces behind a mark for spaces, a template with segments."""
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    trainer = trainers.UnigramTrainer(
        vocab_size=600, special_tokens=SPECIAL, unk_token="<unk>", show_progress=False
    )
    tokenizer.train_from_iterator(corpus(), trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="$A </s>",
        pair="$A </s> $B:2 <s>:2 </s>:2",
        special_tokens=[("<s>", 2), ("</s>", 3)],
    )
    return tokenizer


def unframed() -> Tokenizer:
    """As Qwen's: bytes and no special tokens at all."""
    tokenizer = byte_pairs()
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
    return tokenizer


KINDS: Final[dict[str, Callable[[], Tokenizer]]] = {
    kind.__name__: kind for kind in (word_piece, byte_pairs, unigram, unframed)
}
