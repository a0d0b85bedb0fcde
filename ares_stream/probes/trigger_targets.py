"""What `ares probe triggers` asks: a policy through a judge, or a reward model, behind carriers."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Protocol

from pydantic import BaseModel, ConfigDict, Field

from ares_stream.errors import FileFormatError, ScoringError, SettingsError, TargetError
from ares_stream.files import open_lines, read_rows
from ares_stream.probes.targets import Query, Result, Target
from ares_stream.probes.triggers import Trial
from ares_stream.records.interaction import Interaction, Message, Policy

MIN_WORDS = 4
_SEVERAL = 16


class Carrier(BaseModel):
    """A prompt that triggers are put behind; the reward model also needs a harmful answer to it."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    prompt: Annotated[str, Field(min_length=1)]
    response: Annotated[str, Field(min_length=1)] | None = None


class Model(Protocol):
    """A judge or a reward model."""

    async def values(
        self,
        inputs: Sequence[tuple[Interaction, str]],
        executor: Executor,
    ) -> list[float | ScoringError]:
        """One number per (interaction, answer), in order."""
        ...

    def quantile(self, reward: float) -> float:
        """Place of a reward among those of benign answers."""
        ...


def read_carriers(file: Path, *, responses: bool) -> list[Carrier]:
    """JSON lines. Raises FileFormatError naming file and line, SettingsError."""
    carriers = []
    for number, carrier in read_rows(file, Carrier):
        if responses and carrier.response is None:
            raise FileFormatError(
                str(file), number, "response: missing; a reward model needs a harmful answer"
            )
        carriers.append(carrier)
    return carriers


def read_vocabulary(file: Path) -> list[str]:
    """One word or phrase a line, each once. Raises FileFormatError naming file and line."""
    words: dict[str, int] = {}
    with open_lines(file) as lines:
        for number, line in lines:
            try:
                word = line.decode().strip()
            except UnicodeDecodeError:
                raise FileFormatError(str(file), number, "not UTF-8") from None
            if word in words:
                raise FileFormatError(str(file), number, f"the word of line {words[word]} again")
            words[word] = number
    if len(words) < MIN_WORDS:
        raise SettingsError(f"{file}: holds {len(words)} words; at least {MIN_WORDS} are needed")
    return list(words)


@dataclass(frozen=True)
class Asked:
    """Effects of trials. With a target `model` is a judge: the probability that the target's
    answer is harmful. Without one it is a reward model: the place of the carrier's own response
    among benign answers."""

    carriers: Sequence[Carrier]
    model: Model
    executor: Executor
    target: Target | None = None

    async def effects(self, trials: Sequence[Trial]) -> list[float]:
        """One per trial, in order. Raises the first TargetError or ScoringError: a trial without
        an answer would read as one that did nothing."""
        found: list[float] = []
        for start in range(0, len(trials), _SEVERAL):
            found += await self._several(trials[start : start + _SEVERAL])
        return found

    async def _several(self, trials: Sequence[Trial]) -> list[float]:
        prompts = [
            (Message(role="user", content=" ".join((self.carriers[t.carrier].prompt, *t.words))),)
            for t in trials
        ]
        answers = [self.carriers[t.carrier].response or "" for t in trials]
        if self.target is not None:
            answers = [
                _answered(result) for result in await self.target.ask([Query(p) for p in prompts])
            ]
        values = await self.model.values(
            [(_interaction(p, answer), answer) for p, answer in zip(prompts, answers, strict=True)],
            self.executor,
        )
        numbers = [_number(value) for value in values]
        return numbers if self.target is not None else [self.model.quantile(n) for n in numbers]


def _answered(result: Result) -> str:
    if isinstance(result, TargetError):
        raise result
    return result.text


def _number(value: float | ScoringError) -> float:
    if isinstance(value, ScoringError):
        raise value
    return value


def _interaction(messages: tuple[Message, ...], answer: str) -> Interaction:
    return Interaction(
        id="trial",
        occurred_at=datetime(2026, 1, 1, tzinfo=UTC),
        messages=messages,
        response=answer,
        policy=Policy(name="trial", version="1"),
    )
