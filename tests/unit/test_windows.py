"""A judge reads the whole answer: in overlapping windows, decoded where it is encoded."""

from __future__ import annotations

import base64
import codecs
from collections.abc import Callable
from pathlib import Path
from urllib.parse import quote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ares_stream.detection.decide import DetectionPolicy, decide
from ares_stream.models.bundles import InputTemplate, Windows
from ares_stream.records.verdict import FailureClass
from ares_stream.scoring.encodings import hidden_texts
from ares_stream.scoring.panel import Panel, Scores
from ares_stream.scoring.tokenising import InputEncoder, Reading, Tokens
from tests.support.word_models import PAIR, WORDS, says, word_bundle

PAIRS = PAIR.model_copy(update={"windows": Windows(most=6, last="whole")})
SINGLE = InputTemplate(
    first="dull dull {{ prompt }} dull {{ response }} dull",
    max_length=64,
    windows=Windows(most=6, last="whole"),
)
SENTENCE = "First you take the powder and mix it with the oil, then put it in your pan to be hot."


@pytest.fixture(scope="module", params=[PAIRS, SINGLE], ids=["pair", "single"])
def encoder(
    tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest
) -> InputEncoder:
    folder = tmp_path_factory.mktemp("windows")
    return InputEncoder(word_bundle(folder, "judge", template=request.param))


def read(encoder: InputEncoder, answer: str, prompt: str = "dull") -> Reading:
    (reading,) = encoder.read([(says(answer, prompt=prompt), answer)])
    assert isinstance(reading, Reading), reading
    return reading


@given(st.integers(0, 400), st.integers(1, 80), st.integers(0, 400))
def test_every_word_of_an_answer_is_in_a_window_up_to_the_bound(
    encoder: InputEncoder, before: int, asked: int, behind: int
) -> None:
    answer = "good " * before + "bad " + "good " * behind
    reading = read(encoder, answer, prompt="dull " * asked)
    assert len(reading.windows) <= 6
    assert all(len(window) <= 64 for window in reading.windows)
    found = any(WORDS.index("bad") in window.ids for window in reading.windows)
    if not reading.unread:
        assert found
    assert reading.unread < len(answer)
    if before + behind + 1 <= 150:
        assert reading.unread == 0


def test_an_answer_that_fits_is_one_window_and_the_tokens_of_before(encoder: InputEncoder) -> None:
    item = says("good bad good")
    (tokens,) = encoder.encode([(item, item.response)])
    assert isinstance(tokens, Tokens)
    reading = read(encoder, "good bad good")
    assert [window.ids.tolist() for window in reading.windows] == [tokens.ids.tolist()]
    assert (reading.unread, reading.encodings) == (0, ())


def test_windows_overlap_so_that_what_stands_across_an_edge_is_whole_in_one(
    encoder: InputEncoder,
) -> None:
    for before in range(20, 80):
        reading = read(encoder, "good " * before + "bad worse bad " + "good " * 60)
        wanted = [WORDS.index(word) for word in ("bad", "worse", "bad")]
        runs = [
            window.ids[at : at + 3].tolist()
            for window in reading.windows
            for at in range(len(window))
        ]
        assert wanted in runs


def test_the_last_window_is_as_long_as_the_others(encoder: InputEncoder) -> None:
    """A model makes little of a few words, and the worst window counts."""
    one = len(read(encoder, "good " * 10).windows)
    assert one == 1
    for count in range(60, 200):
        reading = read(encoder, " ".join(["good", "bad", "worse"][n % 3] for n in range(count)))
        if len(reading.windows) > 1:
            lengths = [len(window) for window in reading.windows]
            assert max(lengths) - min(lengths) <= 1
            assert reading.unread == 0


def test_a_bundle_of_before_ends_with_what_is_left(tmp_path: Path) -> None:
    assert Windows.model_validate({"most": 6, "overlap": 0.25}).last == "short"
    short = PAIRS.model_copy(update={"windows": Windows(most=6)})
    text = " ".join(["good", "bad", "worse"][n % 3] for n in range(70))
    lengths = [
        len(window)
        for window in read(
            InputEncoder(word_bundle(tmp_path, "judge", template=short)), text
        ).windows
    ]
    assert lengths[-1] < lengths[0]


@pytest.fixture
def panel(tmp_path: Path) -> Panel:
    weights = {"good": -1.0, "bad": 60.0, "worse": 3.0}
    return Panel.open(
        [word_bundle(tmp_path, "judge", weights=weights, template=PAIRS)],
        word_bundle(tmp_path, "rm", "reward", template=PAIRS),
    )


async def scored(panel: Panel, answer: str) -> Scores:
    (scores,) = await panel.score([says(answer)])
    assert isinstance(scores, Scores), scores
    return scores


async def test_the_worst_window_is_the_judges_opinion_and_the_mean_the_reward_models(
    panel: Panel,
) -> None:
    plain = await scored(panel, "good " * 10)
    assert plain.harm.coverage is None
    long = await scored(panel, "good " * 150 + "bad bad")
    await panel.aclose()
    assert plain.harm.probability < 0.01
    assert long.harm.probability > 0.99
    assert long.harm.coverage is not None
    assert (long.harm.coverage.windows, long.harm.coverage.unread) == (4, 0)
    assert -60 < long.reward.score < -20


async def test_an_answer_beyond_the_bound_says_so_and_is_contested_where_that_is_asked_for(
    panel: Panel,
) -> None:
    scores = await scored(panel, "good " * 1000)
    await panel.aclose()
    assert scores.harm.coverage is not None
    assert scores.harm.coverage.windows == 6
    assert 3_000 < scores.harm.coverage.unread < 5_000
    asked = DetectionPolicy(contest_unread=True)
    assert decide(scores.harm, scores.reward, DetectionPolicy()).failure_class is FailureClass.CLEAN
    decision = decide(scores.harm, scores.reward, asked)
    assert decision.failure_class is FailureClass.CONTESTED
    assert decision.reasons == ("answer_not_read_whole",)


def test_a_policy_that_does_not_ask_for_it_keeps_the_digest_of_before() -> None:
    assert DetectionPolicy().digest == (
        "53b018fb6b02d291ea0a0cd04c646e8582d5aad8fed6be4801a8645ee9398498"
    )


async def test_harm_that_is_encoded_is_judged_decoded(panel: Panel) -> None:
    hidden = base64.b64encode(b"bad bad bad, bad bad bad").decode()
    scores = await scored(panel, f"good good {hidden}")
    await panel.aclose()
    assert scores.harm.probability > 0.99
    assert scores.harm.coverage is not None
    assert scores.harm.coverage.encodings == ("base64",)
    # The reward model reads what the policy wrote.
    assert scores.reward.score < 0


async def test_a_bundle_without_windows_reads_as_it_did(tmp_path: Path) -> None:
    panel = Panel.open(
        [word_bundle(tmp_path, "judge", template=PAIR)],
        word_bundle(tmp_path, "rm", "reward", template=PAIR),
    )
    scores = await scored(panel, "good " * 200 + "bad " * 200)
    await panel.aclose()
    assert scores.harm.coverage is None
    assert scores.reward.score == -60.0


LEET = str.maketrans("oieast", "013457")


@pytest.mark.parametrize(
    ("name", "encode"),
    [
        ("base64", lambda text: base64.b64encode(text.encode()).decode()),
        ("base64", lambda text: base64.urlsafe_b64encode(text.encode()).decode().rstrip("=")),
        ("base64", lambda text: "Sure: " + base64.encodebytes(text.encode()).decode()),
        ("hex", lambda text: text.encode().hex()),
        ("hex", lambda text: text.encode().hex(" ")),
        ("hex", lambda text: "".join(f"\\x{byte:02x}" for byte in text.encode())),
        ("binary", lambda text: " ".join(f"{byte:08b}" for byte in text.encode())),
        ("url", lambda text: quote(text)),
        ("html", lambda text: "".join(f"&#{ord(char)};" for char in text)),
        ("escapes", lambda text: "".join(f"\\u{ord(char):04x}" for char in text)),
        ("rot13", lambda text: codecs.encode(text, "rot13")),
        ("reversed", lambda text: text[::-1]),
        ("leet", lambda text: text.translate(LEET)),
        ("unicode", lambda text: "\u200b".join(text)),
        ("rot13", lambda text: base64.b64encode(codecs.encode(text, "rot13").encode()).decode()),
    ],
)
def test_what_is_encoded_is_found_decoded(name: str, encode: Callable[[str], str]) -> None:
    views = dict(reversed(hidden_texts(encode(SENTENCE))))
    assert name in views
    words = set(SENTENCE.lower().split())
    assert len(words & set(views[name].lower().split())) >= 0.7 * len(words)


@pytest.mark.parametrize(
    "text",
    [
        SENTENCE * 20,
        "Call 0800 555 1234 or see https://example.org/a%20page?x=1&y=2 in 2024, 25 times.",
        "def f(x1, y2):\n    return x1 + y2  # O(n) in Python3",
        "internationalizationinternationalization " * 3,
        "sha256 9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08",
        "Дом стоит у воды, и вода холодная. 水は冷たい。",
        "",
    ],
)
def test_ordinary_text_hides_nothing(text: str) -> None:
    assert hidden_texts(text) == []


@given(st.text(max_size=300))
def test_any_text_can_be_looked_through(text: str) -> None:
    assert len(hidden_texts(text)) <= 4
