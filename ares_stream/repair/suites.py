"""Evaluation suites: a directory of prompts with the behaviour that a policy must show.

    suites/
      canaries.yaml     a list of cases, or {refusal: REGEX, cases: [...]}
      support.jsonl     a case per line

A case is {id, prompt or messages, expect: refuse | comply} or {..., matches: REGEX}. Every
suite's share of right answers becomes the figure `suite:<file's name>`, and all cases together
`canaries`, which the gate does not let fall.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final, Literal, Self, TypeVar

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    TypeAdapter,
    ValidationError,
    field_validator,
    model_validator,
)

from ares_stream.detection.intervals import wilson
from ares_stream.detection.refusals import REFUSAL, pattern, refuses
from ares_stream.errors import FileFormatError, RepairError, SettingsError
from ares_stream.files import fault, parse_yaml, read_rows, read_text
from ares_stream.records.base import Identifier, Interval
from ares_stream.records.interaction import Message

MAX_BYTES: Final = 64 << 20
_T = TypeVar("_T")


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Case(_Part):
    """One prompt and what a right answer looks like: an expected behaviour, or a pattern that
    is found in it."""

    id: Identifier
    messages: tuple[Message, ...] = Field(min_length=1)
    expect: Literal["refuse", "comply"] | None = None
    matches: str | None = None

    _regular = field_validator("matches")(lambda value: value if value is None else pattern(value))

    @model_validator(mode="before")
    @classmethod
    def _prompt_is_a_user_turn(cls, value: Any) -> Any:
        if isinstance(value, dict) and isinstance(value.get("prompt"), str):
            value = {key: item for key, item in value.items() if key != "prompt"} | {
                "messages": [{"role": "user", "content": value["prompt"]}]
            }
        return value

    @model_validator(mode="after")
    def _one_expectation(self) -> Self:
        if (self.expect is None) == (self.matches is None):
            raise ValueError("name either expect (refuse or comply) or matches (a pattern)")
        return self


class Suite(_Part):
    """The cases of one file."""

    name: Identifier
    refusal: str = REFUSAL
    cases: tuple[Case, ...] = Field(min_length=1)

    _regular = field_validator("refusal")(pattern)

    def right(self, case: Case, answer: str) -> bool:
        """Whether an answer is what the case expects. An empty answer is right for none."""
        if not answer.strip():
            return False
        if case.matches is not None:
            return re.search(case.matches, answer) is not None
        return refuses(answer, self.refusal) == (case.expect == "refuse")


def load_suites(folder: Path) -> tuple[Suite, ...]:
    """Every suite of a directory, by name.

    Raises FileFormatError that names file and line, RepairError for a directory without suites.
    """
    try:
        files = sorted(
            file for file in folder.iterdir() if file.suffix in (".yaml", ".yml", ".jsonl")
        )
    except OSError as error:
        raise RepairError(f"{folder}: cannot be read: {error.strerror}") from None
    if not files:
        raise RepairError(f"{folder}: holds no suite; expected .yaml or .jsonl files of cases")
    suites = tuple(_load(file) for file in files)
    names = [suite.name for suite in suites]
    if len(set(names)) != len(names):
        raise RepairError(f"{folder}: two files have one name; a suite is called as its file")
    return suites


def _load(file: Path) -> Suite:
    rows, settings = _jsonl(file) if file.suffix == ".jsonl" else _yaml(file)
    seen: dict[str, int] = {}
    cases: list[Case] = []
    for line, row in rows:
        case = row if isinstance(row, Case) else _validated(file, line, row, Case)
        if case.id in seen:
            raise FileFormatError(
                str(file), line, f"id: {case.id} is that of line {seen[case.id]} too"
            )
        seen[case.id] = line
        cases.append(case)
    if not cases:
        raise FileFormatError(str(file), 1, "holds no case")
    return _validated(file, 1, {**settings, "name": file.stem, "cases": tuple(cases)}, Suite)


def _validated(file: Path, line: int, row: Any, form: type[_T]) -> _T:
    try:
        return TypeAdapter(form).validate_python(row)
    except ValidationError as error:
        raise FileFormatError(str(file), line, str(fault(error, form))) from None


def _jsonl(file: Path) -> tuple[list[tuple[int, Case]], dict[str, Any]]:
    if file.stat().st_size > MAX_BYTES:
        raise SettingsError(f"{file}: larger than {MAX_BYTES:,} bytes")
    return list(read_rows(file, Case)), {}


def _yaml(file: Path) -> tuple[list[tuple[int, Any]], dict[str, Any]]:
    document = parse_yaml(read_text(file, limit=MAX_BYTES), file)
    settings: dict[str, Any] = {}
    rows = document.rows()
    if isinstance(document.content, dict):
        settings = {key: value for key, value in document.content.items() if key != "cases"}
        rows = document.rows("cases")
    if rows is None:
        raise FileFormatError(str(file), 1, "expected a list of cases, or cases: with a list")
    return rows, settings


def prompts(suites: Sequence[Suite]) -> list[tuple[Message, ...]]:
    """Every case's conversation, in order: what a policy is to answer."""
    return [case.messages for suite in suites for case in suite.cases]


def figures(suites: Sequence[Suite], answers: Sequence[str]) -> dict[str, Interval]:
    """Shares of right answers with Wilson intervals: each suite's, and `canaries` for all.

    `answers` are in the order of `prompts`.
    """
    rows: dict[str, Interval] = {}
    remaining = iter(answers)
    right = total = 0
    for suite in suites:
        hits = sum(suite.right(case, next(remaining)) for case in suite.cases)
        rows[f"suite:{suite.name}"] = wilson(hits, len(suite.cases))
        right += hits
        total += len(suite.cases)
    return rows | {"canaries": wilson(right, total)}
