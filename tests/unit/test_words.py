"""Looking words up gives the ids that the tokenizers library gives, or leaves the text to it."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, models, normalizers, pre_tokenizers

from ares_stream.scoring import words as module
from ares_stream.scoring.words import Words
from tests.support.tokenizers import KINDS, corpus, word_piece

PLAIN = word_piece()
CASED = word_piece()
CASED.normalizer = normalizers.BertNormalizer(lowercase=False, clean_text=False)
TOKENIZERS = {"lower case": PLAIN, "cased": CASED}
ASCII = st.text(st.characters(min_codepoint=0, max_codepoint=127), max_size=80)
LIKE_TEXT = st.lists(
    st.sampled_from(
        ["bare", "BATI", "lo-mun", "x" * 120, "12", "3.5", "<s>", "<UNK>", "\t", " ", "\n", "été"]
    ),
    max_size=20,
).map(" ".join)


def looked_up(words: Words, texts: list[str]) -> list[list[int] | None]:
    return [None if ids is None else ids.tolist() for ids in words.ids(texts)]


def ids_of(tokenizer: Tokenizer, text: str) -> list[int]:
    return list(tokenizer.encode(text, add_special_tokens=False).ids)


@pytest.mark.parametrize("name", TOKENIZERS)
@given(st.lists(ASCII | LIKE_TEXT | st.text(max_size=40), max_size=6))
def test_ids_are_those_of_the_library_or_none(name: str, texts: list[str]) -> None:
    tokenizer = TOKENIZERS[name]
    words = Words.of(tokenizer)
    assert words is not None
    for _ in range(2):  # The second time every word is known.
        for text, ids in zip(texts, looked_up(words, texts), strict=True):
            assert ids is None or ids == ids_of(tokenizer, text)


def test_plain_text_is_looked_up() -> None:
    words = Words.of(PLAIN)
    assert words is not None
    texts = ["Tell me: what (exactly) is 3.5?\n\tNow!", "", "   "]
    assert looked_up(words, texts) == [ids_of(PLAIN, text) for text in texts]


@pytest.mark.parametrize(
    "text", ["été", "a\x00b", "a\x0bb", "a\x7fb", "one <s> two", "ONE <S> TWO", "水"]
)
def test_what_could_be_read_in_another_way_is_left_to_the_library(text: str) -> None:
    words = Words.of(PLAIN)
    assert words is not None
    assert looked_up(words, [text]) == [None]


def test_a_token_that_was_added_to_the_vocabulary_is_left_to_the_library() -> None:
    tokenizer = word_piece()
    tokenizer.add_tokens([AddedToken("baba", normalized=True)])
    words = Words.of(tokenizer)
    assert words is not None
    assert looked_up(words, ["rebaba", "reba"]) == [None, ids_of(tokenizer, "reba")]


def test_a_tokenizer_without_a_token_for_a_word_leaves_it_to_the_library() -> None:
    tokenizer = Tokenizer(models.WordPiece({"a": 0}, unk_token="none"))
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    words = Words.of(tokenizer)
    assert words is not None
    assert looked_up(words, ["a", "b"]) == [None, None]
    assert looked_up(words, ["a"]) == [[0]]


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "word_piece"])
def test_other_kinds_of_tokenizer_are_left_to_the_library(kind: str) -> None:
    assert Words.of(KINDS[kind]()) is None


def test_a_word_piece_that_splits_otherwise_is_left_to_the_library() -> None:
    tokenizer = word_piece()
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    assert Words.of(tokenizer) is None
    tokenizer = word_piece()
    tokenizer.normalizer = normalizers.Lowercase()
    assert Words.of(tokenizer) is None


def test_what_is_known_stays_bounded_and_right(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MOST_WORDS", 50)
    words = Words.of(PLAIN)
    assert words is not None
    texts = [f"word{number} bati {number}" for number in range(400)]
    with ThreadPoolExecutor(4) as threads:
        found = list(threads.map(lambda text: looked_up(words, [text])[0], texts))
    assert found == [ids_of(PLAIN, text) for text in texts]
    assert len(words._known) <= 50 + 3 * 4  # Three words of each thread.


def test_a_long_word_is_never_kept_and_its_neighbours_are_looked_up() -> None:
    words = Words.of(PLAIN)
    assert words is not None
    longest = "a" * module.LONGEST
    assert looked_up(words, [f"bati {longest}b", f"bati {longest}"]) == [
        None,
        ids_of(PLAIN, f"bati {longest}"),
    ]
    assert sorted(words._known) == [longest, "bati"]


def test_the_library_reads_the_words_of_its_own_corpus_alike() -> None:
    words = Words.of(PLAIN)
    assert words is not None
    texts = corpus(200)
    found = [
        (ids, ids_of(PLAIN, text))
        for text, ids in zip(texts, looked_up(words, texts), strict=True)
        if ids is not None
    ]
    assert found
    assert all(ids == expected for ids, expected in found)
