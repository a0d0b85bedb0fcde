"""What the two trainers read: labelled conversations and preference pairs, as JSON lines.

Harm (`read_judgements`), one object a line, either
    {"prompt": str, "response": str, "harmful": bool,
     "goal"?: str, "source"?: str, "weight"?: number}
or an Interaction whose `attributes` hold "harmful": "true" or "false" (and perhaps "goal",
"source"). Reward (`read_preferences`), either
    {"prompt": str, "chosen": str, "rejected": str, "goal"?: str}
or the same with lists of {"role", "content"}, as `ares repair export` and TRL write them:
`prompt` holds the turns so far, `chosen` and `rejected` one turn of the assistant each; without
a prompt both hold the whole conversation, which differs in its last turn.
Other fields are ignored; `goal` may be null. Without a source, a row's source is its file's
name. Files may be gzip.

A **family** is what two rows share when one would give the other away: their goal, else their
prompt, both normalised. Splits go by family.
"""

from __future__ import annotations

import hashlib
import math
import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Literal, TypeVar

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    FiniteFloat,
    StringConstraints,
    ValidationError,
)

from ares_stream.errors import DecodeError, FileFormatError, InputError
from ares_stream.files import open_lines
from ares_stream.records.base import decode_error, digest
from ares_stream.records.interaction import Interaction, Message, Policy, Role

Text = Annotated[str, StringConstraints(max_length=1_000_000)]
Words = Annotated[str, StringConstraints(max_length=1_000_000, pattern=r"\S")]
Part = Literal["train", "calibrate", "test"]
Row = TypeVar("Row")


@dataclass(frozen=True, slots=True)
class Judgement:
    """A conversation that somebody labelled. `weight` multiplies its loss."""

    interaction: Interaction
    harmful: bool
    family: str
    source: str
    weight: float = 1.0


@dataclass(frozen=True, slots=True)
class Preference:
    """Two answers to one prompt, the better one first."""

    chosen: Interaction
    rejected: Interaction
    family: str


@dataclass(frozen=True, slots=True)
class Expected:
    """What a model gave elsewhere for a conversation: all its logits, or the one number that is
    read of them (a probability of harm, a reward)."""

    interaction: Interaction
    logits: tuple[float, ...] | None
    score: float | None


@dataclass(frozen=True, slots=True)
class DataFile:
    """A file that was read: its name without folders, and SHA-256 of its (unzipped) content."""

    name: str
    digest: str
    rows: int
    refused: tuple[tuple[int, str], ...] = ()
    """Line and reason of each row that says nothing, and was left out."""


class _Line(BaseModel):
    model_config = ConfigDict(extra="ignore", strict=True)

    prompt: Words
    goal: Text | None = None


class _ConversationLine(_Line):
    response: Text


class _JudgementLine(_ConversationLine):
    harmful: bool
    source: Text | None = None
    weight: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 1.0


class _PreferenceLine(_Line):
    chosen: Text
    rejected: Text


class _Turn(BaseModel):
    model_config = ConfigDict(extra="ignore", strict=True)

    role: Role
    content: Text


def _turn(role: Role) -> BeforeValidator:
    """Plain text is one turn of this role."""
    return BeforeValidator(
        lambda value: [{"role": role, "content": value}] if isinstance(value, str) else value
    )


class _TurnsLine(BaseModel):
    model_config = ConfigDict(extra="ignore", strict=True)

    prompt: Annotated[list[_Turn], _turn("user")] = []
    chosen: Annotated[list[_Turn], _turn("assistant"), Field(min_length=1)]
    rejected: Annotated[list[_Turn], _turn("assistant"), Field(min_length=1)]
    goal: Text | None = None


class _ExpectedLine(_ConversationLine):
    logits: Annotated[list[FiniteFloat], Field(min_length=1)] | None = None
    score: FiniteFloat | None = None


class _Refused(DecodeError):
    """A row that is well formed and says nothing."""


_NEVER = datetime(1970, 1, 1, tzinfo=UTC)
_NOBODY = Policy(name="unknown", version="0")


def conversation(prompt: str | tuple[Message, ...], response: str) -> Interaction:
    """An Interaction of one turn, or of these; its id is a hash of its text, its time and policy
    mean nothing."""
    turns = (Message(role="user", content=prompt),) if isinstance(prompt, str) else prompt
    asked = prompt if isinstance(prompt, str) else digest([turn.model_dump() for turn in turns])
    text = f"{len(asked)}:{asked}{response}".encode("utf-8", "surrogatepass")
    return Interaction(
        id=hashlib.sha256(text).hexdigest()[:32],
        occurred_at=_NEVER,
        messages=turns,
        response=response,
        policy=_NOBODY,
    )


def family(text: str) -> str:
    """One short key for spellings of one text: case, accents, punctuation and spacing ignored."""
    plain = unicodedata.normalize("NFKD", text).casefold()
    words = re.sub(r"[\W_]+", " ", "".join(c for c in plain if not unicodedata.combining(c)))
    return hashlib.sha256((words.strip() or text).encode("utf-8", "surrogatepass")).hexdigest()[:16]


def read_judgements(files: Sequence[Path]) -> tuple[list[Judgement], list[DataFile]]:
    """Read labelled conversations.

    Raises FileFormatError (file, line, field; never text of the line) for the first bad line,
    and InputError where all files together lack one of the labels.
    """
    rows, read = _read(files, _judgement)
    if {row.harmful for row in rows} != {True, False}:
        raise InputError(
            f"{_names(files)}: needs conversations labelled harmful and ones labelled harmless"
        )
    return rows, read


def read_preferences(files: Sequence[Path]) -> tuple[list[Preference], list[DataFile]]:
    """Read preference pairs. Raises as read_judgements does. A pair of two equal answers is left
    out, and named by line in its DataFile."""
    rows, read = _read(files, _preference)
    if not rows:
        ties = sum(len(file.refused) for file in read)
        raise InputError(
            f"{_names(files)}: holds no preference pair"
            + (f"; in {ties} rows both answers are the same" if ties else "")
        )
    return rows, read


def read_conversations(files: Sequence[Path]) -> tuple[list[Interaction], list[DataFile]]:
    """Read conversations without labels, {prompt, response} or Interactions."""
    return _read(files, _conversation)


def read_expected(files: Sequence[Path]) -> list[Expected]:
    """Read what a model gave for conversations: {prompt, response, logits: [number, …]} or
    {prompt, response, score: number}. Raises as read_judgements does."""
    rows, _ = _read(files, _expected)
    return rows


def part_of(key: str, *, seed: int, holdout: float) -> Part:
    """Which part a family belongs to: the held-out share is halved into calibrate and test.

    Depends on nothing but the arguments, so a new row never moves an old one.
    """
    hashed = hashlib.sha256(f"{seed}:{key}".encode()).digest()
    place = int.from_bytes(hashed[:8], "big") / 2**64
    if place >= holdout:
        return "train"
    return "calibrate" if place < holdout / 2 else "test"


def by_part(keys: Iterable[str], *, seed: int, holdout: float) -> dict[Part, list[int]]:
    """Row numbers of each part, in order."""
    parts: dict[Part, list[int]] = {"train": [], "calibrate": [], "test": []}
    for number, key in enumerate(keys):
        parts[part_of(key, seed=seed, holdout=holdout)].append(number)
    return parts


def mixed_sources(rows: Sequence[Judgement]) -> frozenset[str]:
    """Sources in which both labels occur: only inside these does a figure say anything.

    Where a source has one label, telling the sources apart looks like telling harm.
    """
    labels: dict[str, set[bool]] = {}
    for row in rows:
        labels.setdefault(row.source, set()).add(row.harmful)
    return frozenset(source for source, found in labels.items() if len(found) == 2)


def balanced_weights(rows: Sequence[Judgement]) -> list[float]:
    """Loss weights: both labels weigh the same, and inside a label each source weighs as the
    square root of its size, so that a large file does not drown a small one."""
    sizes = Counter((row.source, row.harmful) for row in rows)
    weights = [row.weight / math.sqrt(sizes[row.source, row.harmful]) for row in rows]
    totals = {True: 0.0, False: 0.0}
    for row, weight in zip(rows, weights, strict=True):
        totals[row.harmful] += weight
    return [
        weight / totals[row.harmful] * len(rows) / 2
        for row, weight in zip(rows, weights, strict=True)
    ]


def _read(
    files: Sequence[Path], parse: Callable[[bytes, str], Row]
) -> tuple[list[Row], list[DataFile]]:
    rows: list[Row] = []
    read: list[DataFile] = []
    for file in files:
        with open_lines(file) as lines:
            survey, before = lines.survey(), len(rows)
            refused: list[tuple[int, str]] = []
            for number, line in lines:
                try:
                    rows.append(parse(line, file.name))
                except _Refused as error:
                    refused.append((number, str(error)))
                except DecodeError as error:
                    raise FileFormatError(lines.name, number, str(error)) from None
            count = len(rows) - before
            read.append(DataFile(file.name, survey.digest, count, tuple(refused)))
    return rows, read


def _judgement(line: bytes, file: str) -> Judgement:
    try:
        row = _JudgementLine.model_validate_json(line)
    except ValidationError as error:
        if _looks_like_interaction(error):
            return _labelled(Interaction.decode(line), file)
        raise decode_error(error, _JudgementLine) from None
    return Judgement(
        conversation(row.prompt, row.response),
        row.harmful,
        family(row.goal or row.prompt),
        row.source or file,
        row.weight,
    )


def _looks_like_interaction(error: ValidationError) -> bool:
    first = error.errors(include_url=False, include_context=False)[0]
    given = first["input"]
    return first["loc"] == ("prompt",) and isinstance(given, dict) and "messages" in given


def _labelled(interaction: Interaction, file: str) -> Judgement:
    label = interaction.attributes.get("harmful", "").lower()
    if label not in ("true", "false"):
        raise DecodeError('must be "true" or "false"', field="attributes.harmful")
    return Judgement(
        interaction,
        label == "true",
        family(interaction.attributes.get("goal") or interaction.prompt),
        interaction.attributes.get("source") or file,
    )


def _conversation(line: bytes, _file: str) -> Interaction:
    try:
        row = _ConversationLine.model_validate_json(line)
    except ValidationError as error:
        if _looks_like_interaction(error):
            return Interaction.decode(line)
        raise decode_error(error, _ConversationLine) from None
    return conversation(row.prompt, row.response)


def _preference(line: bytes, _file: str) -> Preference:
    try:
        row = _PreferenceLine.model_validate_json(line)
    except ValidationError as error:
        if _holds_turns(error):
            return _preference_of_turns(line)
        raise decode_error(error, _PreferenceLine) from None
    return _pair(row.prompt, row.chosen, row.rejected, row.goal or row.prompt)


def _holds_turns(error: ValidationError) -> bool:
    return any(
        part["loc"][:1] in (("prompt",), ("chosen",), ("rejected",))
        and isinstance(part["input"], list)
        for part in error.errors(include_url=False, include_context=False)
    )


def _preference_of_turns(line: bytes) -> Preference:
    try:
        row = _TurnsLine.model_validate_json(line)
    except ValidationError as error:
        raise decode_error(error, _TurnsLine) from None
    for name, turns in (("chosen", row.chosen), ("rejected", row.rejected)):
        if turns[-1].role != "assistant":
            raise DecodeError("does not end in a turn of the assistant", field=name)
    if row.chosen[:-1] != row.rejected[:-1]:
        raise DecodeError("answers another conversation than chosen", field="rejected")
    asked = (*row.prompt, *row.chosen[:-1])
    if not any(turn.content.strip() for turn in asked):
        raise DecodeError("holds no turn with text", field="prompt")
    messages = tuple(Message(role=turn.role, content=turn.content) for turn in asked)
    goal = row.goal or "\n".join(turn.content for turn in asked)
    return _pair(messages, row.chosen[-1].content, row.rejected[-1].content, goal)


def _pair(prompt: str | tuple[Message, ...], chosen: str, rejected: str, goal: str) -> Preference:
    if chosen == rejected:
        raise _Refused("equals chosen; a pair needs two answers", field="rejected")
    return Preference(conversation(prompt, chosen), conversation(prompt, rejected), family(goal))


def _expected(line: bytes, _file: str) -> Expected:
    try:
        row = _ExpectedLine.model_validate_json(line)
    except ValidationError as error:
        raise decode_error(error, _ExpectedLine) from None
    if (row.logits is None) == (row.score is None):
        raise DecodeError("give logits, or score: one of the two", field="logits")
    logits = None if row.logits is None else tuple(row.logits)
    return Expected(conversation(row.prompt, row.response), logits, row.score)


def _names(files: Sequence[Path]) -> str:
    return ", ".join(str(file) for file in files)
