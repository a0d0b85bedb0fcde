"""The score card: a set that cannot drift, figures that follow from the answers, no text."""

import json
from collections.abc import Sequence
from importlib import resources
from pathlib import Path

import pytest

from ares_stream.detection.decide import DetectionPolicy
from ares_stream.errors import IntegrityError, ScoringError, SettingsError, TargetError
from ares_stream.probes.scorecard import SETS, as_markdown, load_set, score_card
from ares_stream.probes.targets import Answer, Query, Result
from ares_stream.records.interaction import Interaction, Policy
from ares_stream.records.verdict import Harm, Reward
from ares_stream.scoring.panel import Scores

PROBES = load_set("1")


class Parrot:
    """Answers with the prompt's own words; every n-th question gets no answer."""

    policy = Policy(name="parrot", version="2")

    def __init__(self, silent_every: int = 0) -> None:
        self.asked = 0
        self._silent_every = silent_every

    async def ask(self, queries: Sequence[Query]) -> list[Result]:
        results: list[Result] = []
        for query in queries:
            self.asked += 1
            silent = self._silent_every and self.asked % self._silent_every == 0
            answer = Answer(f"secret {query.messages[-1].content}")
            results.append(TargetError("down") if silent else answer)
        return results

    async def aclose(self) -> None:
        pass


class ByTopic:
    """Two judges: answers about theft are harmful and liked, those about weapons harmful and
    disliked; the judges differ on malware."""

    async def score(self, interactions: Sequence[Interaction]) -> list[Scores | ScoringError]:
        return [self._score(item.attributes["topic"]) for item in interactions]

    def _score(self, topic: str) -> Scores:
        harm = 0.95 if topic in ("theft", "weapons") else 0.05
        other = 1 - harm if topic == "malware" else harm
        return Scores(
            Harm(
                probability=(harm + other) / 2,
                judges={"one": harm, "two": other},
                disagreement=abs(harm - other),
            ),
            Reward(score=0.0, quantile=0.1 if topic == "weapons" else 0.9),
            {"one": "a" * 64, "two": "b" * 64, "reward": "c" * 64},
        )


async def test_rates_follow_from_classes_and_every_topic_is_shown() -> None:
    card = await score_card(Parrot(), ByTopic(), "1", DetectionPolicy(), environment={})
    per_topic = len(PROBES) // len({probe.components["topic"] for probe in PROBES})
    assert card["probes"] == len(PROBES)
    assert card["classes"]["coupled_failure"] == per_topic
    assert card["classes"]["contested"] == per_topic
    assert card["coupled_failure_rate"]["value"] == per_topic / len(PROBES)
    assert card["reward_blind_rate"]["value"] == 0.5
    assert card["judge_agreement"]["value"] == 1 - per_topic / len(PROBES)
    assert card["by_component"]["topic"]["theft"]["value"] == 1.0
    assert card["by_component"]["topic"]["weapons"]["value"] == 0.0
    assert card["releases"]["reward"] == "c" * 64


async def test_the_card_and_its_page_hold_no_words_of_probes_or_answers() -> None:
    card = await score_card(Parrot(), ByTopic(), "1", DetectionPolicy(), environment={})
    page = as_markdown(card)
    assert "secret" not in json.dumps(card) + page
    assert PROBES[0].messages[-1].content not in json.dumps(card)
    assert page.index("theft") < page.index("weapons")


async def test_a_few_silent_probes_are_counted_and_many_end_it() -> None:
    few = await score_card(
        Parrot(silent_every=50), ByTopic(), "1", DetectionPolicy(), environment={}
    )
    assert few["without_verdict"] == len(PROBES) // 50
    assert few["probes"] + few["without_verdict"] == len(PROBES)
    target = Parrot(silent_every=2)
    with pytest.raises(TargetError, match="got no answer or no score; at most 5%"):
        await score_card(target, ByTopic(), "1", DetectionPolicy(), environment={})
    assert target.asked < len(PROBES)


def test_the_set_covers_every_topic_and_tactic_and_has_no_probe_twice() -> None:
    assert len({probe.id for probe in PROBES}) == len(PROBES)
    assert len({probe.messages for probe in PROBES}) > 0.95 * len(PROBES)
    pairs = {(probe.components["topic"], probe.components["tactic"]) for probe in PROBES}
    assert len(pairs) == len(PROBES)


def test_an_unknown_version_is_refused() -> None:
    with pytest.raises(SettingsError, match="probe set 0: unknown; one of 1"):
        load_set("0")


def test_a_set_that_was_changed_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    name = "cfr_probes_1.jsonl"
    text = resources.files("ares_stream.probes").joinpath(name).read_text("utf-8")
    (tmp_path / name).write_text(text.replace("phishing", "fishing", 1))
    monkeypatch.setattr("ares_stream.probes.scorecard.resources.files", lambda _: tmp_path)
    with pytest.raises(IntegrityError, match="not probe set 1"):
        load_set("1")
    assert set(SETS) == {"1"}
