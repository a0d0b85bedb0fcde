"""What is cut: the ids that the tokenizers library would give, at a cost that does not grow."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer

from ares_stream.errors import BundleError
from ares_stream.models.bundles import Bundle, InputTemplate, Lineage, Manifest, Outputs, Windows
from ares_stream.scoring.framing import read_frames
from ares_stream.scoring.tokenising import (
    CHARACTERS_PER_TOKEN,
    MIN_FIRST_TOKENS,
    InputEncoder,
    Reading,
    Tokens,
)
from tests.support.tokenizers import KINDS, corpus, unframed
from tests.support.word_models import WORDS, says, word_tokenizer

INPUTS = 150
"""Of each of the four kinds of tokenizer, pairs and single texts: 1,200 in all."""


def encoder(folder: Path, tokenizer: Tokenizer, limit: int, *, pair: bool) -> InputEncoder:
    tokenizer.save(str(folder / "tokenizer.json"))
    template = InputTemplate(
        first="{{ prompt }}" if pair else "{{ prompt }} {{ response }}",
        second="{{ response }}" if pair else None,
        max_length=limit,
    )
    manifest = Manifest(
        name="judge",
        kind="harm",
        template=template,
        outputs=Outputs(activation="sigmoid", labels=(0,)),
        lineage=Lineage(base="none"),
    )
    return InputEncoder(Bundle(folder, manifest, ""))


def test_a_text_that_is_cut_keeps_the_beginning_token_that_its_template_writes(
    tmp_path: Path,
) -> None:
    bare = {**json.loads(word_tokenizer()), "post_processor": None}
    (tmp_path / "tokenizer.json").write_text(json.dumps(bare))
    template = InputTemplate(
        first='{% set bos_token = "[CLS]" %}\n{{ bos_token }} {{ prompt }} {{ response }}',
        max_length=12,
    )
    manifest = Manifest(
        name="judge",
        kind="harm",
        template=template,
        outputs=Outputs(activation="sigmoid", labels=(0,)),
        lineage=Lineage(base="none"),
    )
    reader = InputEncoder(Bundle(tmp_path, manifest, ""))
    answer = "bad worse"
    for asked in range(1, 40):
        (tokens,) = reader.encode([(says(answer, prompt="dull " * asked), answer)])
        assert isinstance(tokens, Tokens)
        words = [WORDS[item] for item in tokens.ids]
        assert words == ["[CLS]", *["dull"] * min(asked, 9), "bad", "worse"]
    windowed = template.model_copy(update={"windows": Windows(most=4)})
    reader = InputEncoder(Bundle(tmp_path, manifest.model_copy(update={"template": windowed}), ""))
    long = "good " * 30
    (reading,) = reader.read([(says(long, prompt="dull " * 40), long)])
    assert isinstance(reading, Reading)
    assert len(reading.windows) > 2
    assert all(WORDS[window.ids[0]] == "[CLS]" for window in reading.windows)


def by_the_library(
    tokenizer: Tokenizer, limit: int, prompt: str, response: str, *, pair: bool
) -> tuple[list[int], list[int]]:
    """Ids and segments as the library's own truncation and framing give them."""
    longest = limit * CHARACTERS_PER_TOKEN
    room = limit - tokenizer.num_special_tokens_to_add(pair)
    if pair:
        first = tokenizer.encode(prompt[-longest:], add_special_tokens=False)
        second = tokenizer.encode(response[:longest], add_special_tokens=False)
        if len(first) + len(second) > room:
            second.truncate(max(1, room - min(len(first), MIN_FIRST_TOKENS)), direction="right")
            first.truncate(max(0, room - len(second)), direction="left")
        whole = tokenizer.post_process(first, second)
    else:
        first = tokenizer.encode(f"{prompt} {response}"[-longest:], add_special_tokens=False)
        first.truncate(room, direction="left")
        whole = tokenizer.post_process(first)
    return whole.ids, whole.type_ids


def text(random: np.random.Generator, lines: list[str]) -> str:
    """Of nothing to some thousand characters; one in ten without any space."""
    joined = " ".join(random.choice(lines, random.integers(0, 20)))[: int(random.integers(1, 1800))]
    return joined.replace(" ", "") if random.random() < 0.1 else joined


@pytest.mark.parametrize("pair", [True, False])
@pytest.mark.parametrize("kind", KINDS)
def test_ids_and_segments_are_the_librarys(tmp_path: Path, kind: str, pair: bool) -> None:
    tokenizer, lines, random = KINDS[kind](), corpus(), np.random.default_rng(1)
    limits = {limit: tmp_path / str(limit) for limit in (24, 64, 512)}
    for folder in limits.values():
        folder.mkdir()
    encoders = {
        limit: encoder(folder, tokenizer, limit, pair=pair) for limit, folder in limits.items()
    }
    compared = 0
    for number in range(INPUTS):
        limit = list(limits)[number % len(limits)]
        prompt, response = "x " + text(random, lines), text(random, lines)
        (tokens,) = encoders[limit].encode([(says(response, prompt=prompt), response)])
        assert isinstance(tokens, Tokens), tokens
        ids, types = by_the_library(tokenizer, limit, prompt, response, pair=pair)
        assert (tokens.ids.tolist(), tokens.types.tolist()) == (ids, types)
        compared += 1
    assert compared == INPUTS


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> tuple[InputEncoder, Tokenizer]:
    tokenizer = KINDS["word_piece"]()
    return encoder(tmp_path_factory.mktemp("pairs"), tokenizer, 64, pair=True), tokenizer


@given(st.integers(1, 400), st.integers(0, 400))
def test_of_every_length_the_cut_is_the_librarys(
    pairs: tuple[InputEncoder, Tokenizer], asked: int, answered: int
) -> None:
    ours, tokenizer = pairs
    prompt, response = "barelo " * asked, "muntisor " * answered
    (tokens,) = ours.encode([(says(response, prompt=prompt), response)])
    assert isinstance(tokens, Tokens)
    assert len(tokens) <= 64
    ids, types = by_the_library(tokenizer, 64, prompt, response, pair=True)
    assert (tokens.ids.tolist(), tokens.types.tolist()) == (ids, types)


@pytest.mark.parametrize("kind", KINDS)
def test_a_frame_is_what_the_library_puts_around_texts(kind: str) -> None:
    tokenizer = KINDS[kind]()
    single, pair = read_frames(tokenizer)
    assert single.size == tokenizer.num_special_tokens_to_add(False)
    assert pair.size == tokenizer.num_special_tokens_to_add(True)
    nothing = np.zeros(0, np.int64)
    some = tokenizer.encode("barelo muntisor", add_special_tokens=False)
    ids, types = pair.around(nothing, np.asarray(some.ids))
    empty = tokenizer.encode("", add_special_tokens=False)
    whole = tokenizer.post_process(empty, some)
    assert (ids.tolist(), types.tolist()) == (whole.ids, whole.type_ids)


def test_a_tokenizer_that_turns_texts_round_is_refused_by_name(tmp_path: Path) -> None:
    from tokenizers import processors

    tokenizer = unframed()
    tokenizer.post_processor = processors.TemplateProcessing(single="$A", pair="$B $A")
    with pytest.raises(BundleError, match=r"tokenizer\.json: cannot be used: .* in their order"):
        encoder(tmp_path, tokenizer, 64, pair=True)


COST = """
import resource, sys, time
from pathlib import Path
from ares_stream.scoring.tokenising import InputEncoder, Tokens
from tests.support.word_models import says
from tests.unit.test_truncation import encoder
from tests.support.tokenizers import KINDS
ours = encoder(Path(sys.argv[1]), KINDS[sys.argv[2]](), 8192, pair=True)
ours.encode([(says("a", prompt="a"), "a")])
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
before = peak()
half = {"words": "bare ", "letters": "é", "spaces": " "}[sys.argv[3]]
half = half * (524_288 // len(half.encode()))
(tokens,) = ours.encode([(says(half, prompt="a " + half), half)])
assert isinstance(tokens, Tokens), tokens
print(len(tokens), (peak() - before) // 1024)
"""


@pytest.mark.parametrize(
    ("kind", "content"),
    [("word_piece", "words"), ("byte_pairs", "letters"), ("word_piece", "spaces")],
)
def test_a_record_at_the_size_limit_costs_little_memory(
    tmp_path: Path, kind: str, content: str
) -> None:
    command = [sys.executable, "-c", COST, str(tmp_path), kind, content]
    environment = {**os.environ, "TOKENIZERS_PARALLELISM": "false"}
    done = subprocess.run(
        command, check=True, capture_output=True, text=True, timeout=60, env=environment
    )
    length, mebibytes = map(int, done.stdout.split())
    assert 1 <= length <= 8192
    assert mebibytes <= 200
