"""From conversations to token ids: the answer stays, the conversation gives way."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Encoding

from ares_stream.errors import BundleError, ScoringError
from ares_stream.models.bundles import Bundle, InputTemplate
from ares_stream.records.interaction import Interaction, Message
from ares_stream.scoring.tokenising import InputEncoder, Tokens
from tests.support.word_models import PAIR, WORDS, says, word_bundle


def encoder(tmp_path: Path, first: str, second: str | None = None, limit: int = 32) -> InputEncoder:
    template = InputTemplate(first=first, second=second, max_length=limit)
    return InputEncoder(word_bundle(tmp_path, "judge", template=template))


def words(tokens: Tokens | ScoringError) -> str:
    assert isinstance(tokens, Tokens), tokens
    return " ".join(WORDS[index] for index in tokens.ids)


def encoded(encoder: InputEncoder, *interactions: Interaction) -> list[Tokens | ScoringError]:
    return encoder.encode([(item, item.response) for item in interactions])


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> InputEncoder:
    return InputEncoder(word_bundle(tmp_path_factory.mktemp("pairs"), "judge", template=PAIR))


def test_a_pair_has_its_own_segments(pairs: InputEncoder) -> None:
    (tokens,) = encoded(pairs, says("good bad", prompt="dull"))
    assert words(tokens) == "[CLS] dull [SEP] good bad [SEP]"
    assert isinstance(tokens, Tokens)
    assert tokens.types.tolist() == [0, 0, 0, 1, 1, 1]


def test_the_answer_asked_about_may_be_another_than_the_policys(pairs: InputEncoder) -> None:
    (tokens,) = pairs.encode([(says("good"), "bad")])
    assert words(tokens) == "[CLS] dull [SEP] bad [SEP]"


@given(st.integers(1, 300), st.integers(0, 300))
def test_no_input_is_longer_than_the_model_reads_and_the_answer_stays_longest(
    pairs: InputEncoder, asked: int, answered: int
) -> None:
    (tokens,) = encoded(pairs, says("good " * answered, prompt="dull " * asked))
    text = words(tokens).split()
    assert len(text) <= 64
    # Of 61 places, 16 stay for the conversation, if it is that long.
    room = 61 - min(asked, 16)
    assert text.count("good") == min(answered, room)
    assert text.count("dull") == min(asked, 61 - text.count("good"))


def test_of_a_pair_the_end_of_the_question_and_the_beginning_of_the_answer_stay(
    pairs: InputEncoder,
) -> None:
    (tokens,) = encoded(
        pairs, says("good " * 30 + "bad " * 30, prompt="worse " * 30 + "dull " * 30)
    )
    first, second = words(tokens).removeprefix("[CLS] ").split(" [SEP]")[:2]
    assert first.split() == ["dull"] * 16
    assert second.split() == ["good"] * 30 + ["bad"] * 15


def test_of_one_text_the_end_stays(tmp_path: Path) -> None:
    single = encoder(tmp_path, "{{ prompt }} {{ response }}", limit=12)
    (tokens,) = encoded(single, says("good " * 6, prompt="dull " * 40))
    assert words(tokens) == "[CLS] " + "dull " * 4 + "good " * 6 + "[SEP]"


def test_ten_megabytes_are_cut_before_they_are_tokenised(
    pairs: InputEncoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[int] = []
    tokenize = pairs._tokenize

    def listen(texts: Sequence[str]) -> list[Encoding | None]:
        seen.extend(map(len, texts))
        return tokenize(texts)

    monkeypatch.setattr(pairs, "_tokenize", listen)
    (tokens,) = encoded(pairs, says("good " * 2_000_000, prompt="dull " * 2_000_000))
    assert len(words(tokens).split()) == 64
    assert max(seen) < 2000


def test_templates_see_every_message_with_its_role(tmp_path: Path) -> None:
    chat = encoder(
        tmp_path,
        "{% for m in messages if m.role != 'user' %}{{ m.content }} {% endfor %}",
    )
    (tokens,) = encoded(chat, says("good", prompt="bad"))
    assert words(tokens) == "[CLS] good [SEP]"


@pytest.mark.parametrize(
    "template",
    [
        "{% if messages | length > 2 %}{{ raise_exception('no ' + prompt) }}{% endif %}dull",
        "{% if messages | length > 2 %}{{ prompt + 1 }}{% endif %}dull",
        "{% if messages | length > 2 %}{{ 1 / 0 }}{% endif %}dull",
        "{% if messages | length > 2 %}{{ range(10 ** 9) | list }}{% endif %}dull",
        "{% if messages | length > 2 %}{{ prompt.__class__.__mro__ }}{% endif %}dull",
    ],
)
def test_a_conversation_a_template_fails_on_spoils_no_other(tmp_path: Path, template: str) -> None:
    single = encoder(tmp_path, template)
    longer = says("good").model_copy(
        update={"messages": tuple(Message(role="user", content="secret") for _ in range(3))}
    )
    before, failed, after = encoded(single, says("good"), longer, says("good"))
    assert words(before) == words(after) == "[CLS] dull [SEP]"
    assert isinstance(failed, ScoringError)
    assert "secret" not in str(failed)


def test_text_the_tokenizer_fails_on_spoils_no_other(pairs: InputEncoder) -> None:
    conversations = [says("good"), says("bad", prompt="\udc00"), says("bad \udc00"), says("bad")]
    first, asked, answered, last = encoded(pairs, *conversations)
    assert words(first).endswith("good [SEP]")
    assert words(last).endswith("bad [SEP]")
    for failed in (asked, answered):
        assert "no tokens" in str(failed)


def test_nothing_to_encode_is_nothing(pairs: InputEncoder) -> None:
    assert pairs.encode([]) == []


def test_a_wrong_template_or_tokenizer_is_named_when_it_is_loaded(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="input template is wrong"):
        encoder(tmp_path, "{% if %}")
    bundle = word_bundle(tmp_path, "other")
    bundle.tokenizer.write_text("{}")
    with pytest.raises(BundleError, match=r"tokenizer\.json: not a tokenizer"):
        InputEncoder(Bundle(bundle.path, bundle.manifest, ""))
