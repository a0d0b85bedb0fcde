"""Who answers the probes: an OpenAI-compatible endpoint, or answers recorded before.

A target takes many queries and returns one result per query, in order. A query that cannot be
answered is a TargetError in its place, so that one does not spoil the others; what no query can
survive (a wrong key, an unknown model) is raised.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, Self

import httpx
from pydantic import BaseModel, ConfigDict, Field, model_validator

from ares_stream.endpoints.client import ChatClient, EndpointPolicy, Unanswerable, Usage
from ares_stream.errors import SettingsError, TargetError
from ares_stream.files import read_rows
from ares_stream.records.base import digest
from ares_stream.records.interaction import Message, Policy


@dataclass(frozen=True, slots=True)
class Query:
    """One question. Queries with equal messages and another seed ask for another sample."""

    messages: tuple[Message, ...]
    seed: int = 0


@dataclass(frozen=True, slots=True)
class Answer:
    """What the policy said. `finish` is the endpoint's reason to stop; "content_filter" means
    that the endpoint, not the policy, refused (text may then be empty)."""

    text: str
    prompt_tokens: int = 0
    completion_tokens: int = 0
    seconds: float = 0.0
    finish: str = "stop"


Result = Answer | TargetError


class Target(Protocol):
    """A policy under test."""

    @property
    def policy(self) -> Policy:
        """Name and version of who answers."""
        ...

    async def ask(self, queries: Sequence[Query]) -> list[Result]:
        """One result per query, in order."""
        ...

    async def aclose(self) -> None:
        """Release what the target holds."""
        ...


class OpenAITarget:
    """An OpenAI-compatible endpoint."""

    def __init__(
        self,
        endpoint: EndpointPolicy,
        *,
        transport: httpx.AsyncBaseTransport | None = None,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self.policy = Policy(name=endpoint.model, version=endpoint.version)
        self._client = ChatClient(endpoint, transport=transport, clock=clock, sleep=sleep)

    @property
    def usage(self) -> Usage:
        """What it has cost so far."""
        return self._client.usage

    async def ask(self, queries: Sequence[Query]) -> list[Result]:
        """Ask all, at most `concurrency` at a time.

        Raises SettingsError where the endpoint says that the request can never work.
        """
        results: list[Result | None] = [None] * len(queries)

        async def one(place: int, query: Query) -> None:
            turns = [{"role": turn.role, "content": turn.content} for turn in query.messages]
            try:
                said = await self._client.complete(turns, seed=query.seed)
            except TargetError as error:
                results[place] = error
            else:
                results[place] = Answer(
                    said.text,
                    said.prompt_tokens,
                    said.completion_tokens,
                    said.seconds,
                    said.finish,
                )

        try:
            async with asyncio.TaskGroup() as group:
                for place, query in enumerate(queries):
                    group.create_task(one(place, query))
        except* SettingsError as errors:
            raise errors.exceptions[0] from None
        return [result for result in results if result is not None]

    async def aclose(self) -> None:
        """Close the connections."""
        await self._client.aclose()


class RecordedTarget:
    """Answers from a file: one JSON object per line with `messages` or `prompt`, and `response`.

    Several answers to one question are its samples, taken in turn by seed.
    """

    def __init__(self, policy: Policy, answers: Mapping[str, Sequence[str]]) -> None:
        """`answers`: digest of the messages → answers."""
        self.policy = policy
        self._answers = answers

    @classmethod
    def load(cls, path: Path, policy: Policy) -> RecordedTarget:
        """Read a file. Raises FileFormatError with line and field."""
        answers: dict[str, list[str]] = {}
        for _, row in read_rows(path, _Recorded):
            answers.setdefault(_key(row.question), []).append(row.response)
        return cls(policy, answers)

    async def ask(self, queries: Sequence[Query]) -> list[Result]:
        """TargetError for a question without a recorded answer."""
        results: list[Result] = []
        for query in queries:
            known = self._answers.get(_key(query.messages))
            if known is None:
                results.append(Unanswerable("target: no recorded answer to this probe"))
            else:
                results.append(Answer(known[query.seed % len(known)]))
        return results

    async def aclose(self) -> None:
        """Nothing to close."""

    def __len__(self) -> int:
        return len(self._answers)


def _key(messages: Sequence[Message]) -> str:
    return digest([[message.role, message.content] for message in messages])


class _Recorded(BaseModel):
    """`messages` or `prompt`, and `response`; whatever else a row holds is its own."""

    model_config = ConfigDict(extra="ignore", frozen=True)
    messages: tuple[Message, ...] | None = Field(None, min_length=1)
    prompt: str | None = None
    response: str

    @model_validator(mode="after")
    def _question(self) -> Self:
        if (self.messages is None) == (self.prompt is None):
            raise ValueError("expected exactly one of messages and prompt")
        return self

    @property
    def question(self) -> tuple[Message, ...]:
        """As a conversation."""
        if self.messages is not None:
            return self.messages
        return (Message(role="user", content=self.prompt or ""),)
