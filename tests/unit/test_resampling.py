"""Asking the policy again: the first safe answer counts, and nobody is asked without end."""

from collections.abc import Sequence

from ares_stream.records.interaction import Message
from ares_stream.repair.resampling import prompt_digest, safe_answers


def prompt(text: str) -> tuple[Message, ...]:
    return (Message(role="user", content=text),)


PROMPTS = {name: prompt(name) for name in ("soon", "late", "never")}


def sample(turns: Sequence[Sequence[Message]], seed: int) -> list[str]:
    return [f"{messages[0].content} {seed}" for messages in turns]


def fit(pairs: Sequence[tuple[Sequence[Message], str]]) -> list[bool]:
    return [answer in ("soon 0", "soon 1", "late 2") for _, answer in pairs]


def test_the_first_safe_answer_is_kept_and_only_the_others_are_asked_again() -> None:
    asked: list[int] = []

    def counted(turns: Sequence[Sequence[Message]], seed: int) -> list[str]:
        asked.append(len(turns))
        return sample(turns, seed)

    told: list[tuple[str, int, int]] = []
    found = safe_answers(PROMPTS, 4, counted, fit, lambda *step: told.append(step))
    assert found == {"soon": "soon 0", "late": "late 2", "never": None}
    assert asked == [3, 2, 2, 1]
    assert told == [("ask", done, 4) for done in range(5)]


def test_it_ends_early_when_every_prompt_has_an_answer() -> None:
    seeds: list[int] = []

    def counted(turns: Sequence[Sequence[Message]], seed: int) -> list[str]:
        seeds.append(seed)
        return sample(turns, seed)

    easy = {"soon": PROMPTS["soon"]}
    assert safe_answers(easy, 4, counted, fit, lambda *_: None) == {"soon": "soon 0"}
    assert seeds == [0]


def test_a_prompt_is_one_whatever_record_it_came_in() -> None:
    assert prompt_digest(prompt("a")) == prompt_digest(prompt("a")) != prompt_digest(prompt("b"))
    system = (Message(role="system", content="a"),)
    assert prompt_digest(system) != prompt_digest(prompt("a"))
