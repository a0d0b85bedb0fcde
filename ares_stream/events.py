"""The records that flow through Kafka, as frozen pydantic models.

Writing is strict (`Record(...)` refuses unknown fields); reading is lenient
(`Record.decode` keeps unknown fields, so that a newer producer's field survives an older
reader). Every record carries `schema`, "ares.<name>/<major version>": a reader takes any
minor growth and refuses another major version.

Text of conversations lives in Interaction, CoupledFailure and ReviewItem only.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from enum import StrEnum
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import (
    AwareDatetime,
    BaseModel,
    ConfigDict,
    Field,
    FiniteFloat,
    StringConstraints,
    ValidationError,
    field_validator,
    model_validator,
)

from ares_stream.errors import DecodeError

Role = Literal["system", "developer", "user", "assistant", "tool"]
Identifier = Annotated[str, StringConstraints(min_length=1, max_length=256)]
Slice = Annotated[str, StringConstraints(max_length=128)]
"""A label to slice by. Short, so that a conversation cannot hide in it."""
Sha256 = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]
Probability = Annotated[float, Field(ge=0.0, le=1.0, allow_inf_nan=False)]
Lane = Literal["production", "probe"]

MAX_ATTRIBUTES = 32
MAX_MESSAGES = 1024
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


class FailureClass(StrEnum):
    """How policy and reward model did on one interaction (arXiv 2604.18789, types A to C)."""

    CLEAN = "clean"
    REWARD_FAILURE = "reward_failure"
    POLICY_FAILURE = "policy_failure"
    COUPLED_FAILURE = "coupled_failure"
    CONTESTED = "contested"


class Part(BaseModel):
    """A frozen piece of a record."""

    model_config = ConfigDict(
        frozen=True, extra="allow", populate_by_name=True, serialize_by_alias=True
    )

    def __init__(self, **fields: Any) -> None:
        # Construction forbids what reading allows: pydantic's own __init__ has one rule for both.
        self.__pydantic_validator__.validate_python(fields, self_instance=self, extra="forbid")

    # As pydantic's RootModel does: nested parts that are read do not pass through __init__.
    __init__.__pydantic_base_init__ = True  # type: ignore[attr-defined]


class Record(Part):
    """A frozen record of one topic."""

    SCHEMA: ClassVar[str]

    @classmethod
    def decode(cls, raw: bytes) -> Self:
        """Parse JSON bytes; unknown fields are kept.

        Raises DecodeError that names the field and never quotes a value.
        """
        try:
            return cls.model_validate_json(raw)
        except ValidationError as error:
            raise decode_error(error) from None

    def encode(self) -> bytes:
        """Compact JSON, UTF-8. Equal records give equal bytes."""
        return self.model_dump_json(exclude_none=True).encode()


def decode_error(error: ValidationError) -> DecodeError:
    """Say what is wrong with a record without quoting it."""
    first = error.errors(include_url=False, include_context=False, include_input=False)[0]
    more = error.error_count() - 1
    reason = re.sub(r"^Value error, | at line \d+ column \d+$", "", first["msg"])
    if first["type"] == "json_invalid":
        reason = first["msg"]
    if more:
        reason += f" (and {more} more)"
    return DecodeError(reason, field=".".join(str(part) for part in first["loc"]))


class Message(Part):
    """One turn, in OpenAI's chat roles."""

    role: Role
    content: str


class Policy(Part):
    """The language model that answered."""

    name: Identifier
    version: Identifier


class Reference(Part):
    """Known answers to the same prompt: a safe one, a harmful one, or both."""

    chosen: str | None = None
    rejected: str | None = None


class Probe(Part):
    """Where a probe came from. `components` maps a taxonomy axis to an entry's id, never text."""

    id: Identifier
    campaign: Identifier
    generation: int = Field(ge=0)
    components: dict[Slice, Slice]
    sampling_probability: float = Field(gt=0.0, le=1.0, allow_inf_nan=False)
    parents: tuple[Identifier, ...] = ()


class Interaction(Record):
    """One prompt and the policy's answer to it."""

    SCHEMA: ClassVar[str] = "ares.interaction/1"
    schema_: Literal["ares.interaction/1"] = Field("ares.interaction/1", alias="schema")
    id: Identifier
    occurred_at: AwareDatetime
    messages: tuple[Message, ...] = Field(min_length=1, max_length=MAX_MESSAGES)
    response: str
    policy: Policy
    attributes: dict[Slice, Slice] = Field(default_factory=dict, max_length=MAX_ATTRIBUTES)
    reference: Reference | None = None
    probe: Probe | None = None

    @field_validator("occurred_at")
    @classmethod
    def _after_1970(cls, value: datetime) -> datetime:
        if value < EPOCH:
            raise ValueError("lies before 1970; send RFC 3339 or seconds since the epoch")
        return value

    @model_validator(mode="after")
    def _has_words(self) -> Self:
        if not any(message.content.strip() for message in self.messages):
            raise ValueError("messages hold no text; send at least one that does")
        return self

    @property
    def prompt(self) -> str:
        """The last turn that is not the assistant's."""
        for message in reversed(self.messages):
            if message.role != "assistant":
                return message.content
        return self.messages[-1].content


class SourceCoordinates(Part):
    """Where a record was read."""

    topic: Identifier
    partition: int = Field(ge=0)
    offset: int = Field(ge=0)
    timestamp_ms: int = Field(ge=0)


class Harm(Part):
    """What the panel of judges says.

    `probability` is calibrated; `judges` holds each judge's own calibrated probability;
    `disagreement` is the largest difference between two judges, 0 with one judge.
    """

    probability: Probability
    judges: dict[Slice, Probability]
    disagreement: Probability = 0.0


class Reward(Part):
    """What the reward model says.

    `score` is in the model's own units; `quantile` is the score's place among the benign
    reference set of the bundle; `chosen` and `rejected` are the scores of the reference
    answers to the same prompt, where there are any.
    """

    score: FiniteFloat
    quantile: Probability
    chosen: FiniteFloat | None = None
    rejected: FiniteFloat | None = None


class ScoredHigh(Part):
    """The two rules of "the reward model likes it"; None where a rule cannot be asked."""

    above_quantile: bool
    above_reference: bool | None = None


class ProbeLineage(Part):
    """A probe's lineage in a verdict: ids only."""

    id: Identifier
    campaign: Identifier
    generation: int
    components: dict[Slice, Slice]
    sampling_probability: float


class Verdict(Record):
    """The decision on one interaction. Holds no text; equal inputs give equal bytes."""

    SCHEMA: ClassVar[str] = "ares.verdict/1"
    schema_: Literal["ares.verdict/1"] = Field("ares.verdict/1", alias="schema")
    id: Identifier
    interaction_id: Identifier
    lane: Lane
    source: SourceCoordinates
    occurred_at: AwareDatetime
    policy: Policy
    attributes: dict[Slice, Slice] = Field(default_factory=dict)
    harm: Harm
    reward: Reward
    scored_high: ScoredHigh
    failure_class: FailureClass
    reasons: tuple[str, ...]
    releases: dict[Slice, Sha256]
    detection_policy: Sha256
    probe: ProbeLineage | None = None


class CoupledFailure(Record):
    """A coupled failure with its text: what the repairer trains on."""

    SCHEMA: ClassVar[str] = "ares.coupled-failure/1"
    schema_: Literal["ares.coupled-failure/1"] = Field("ares.coupled-failure/1", alias="schema")
    verdict: Verdict
    interaction: Interaction


class ReviewItem(Record):
    """An interaction that a person should look at."""

    SCHEMA: ClassVar[str] = "ares.review-item/1"
    schema_: Literal["ares.review-item/1"] = Field("ares.review-item/1", alias="schema")
    cause: Literal["contested", "sampled"]
    sampling_probability: float = Field(gt=0.0, le=1.0)
    verdict: Verdict
    interaction: Interaction


class Label(Record):
    """A person's decision on one interaction."""

    SCHEMA: ClassVar[str] = "ares.label/1"
    schema_: Literal["ares.label/1"] = Field("ares.label/1", alias="schema")
    interaction_id: Identifier
    verdict_id: Identifier | None = None
    harmful: bool
    reviewer: Identifier
    decided_at: AwareDatetime


class ReleaseState(StrEnum):
    """candidate → active → superseded or rolled_back; candidate → rejected."""

    CANDIDATE = "candidate"
    ACTIVE = "active"
    SUPERSEDED = "superseded"
    REJECTED = "rejected"
    ROLLED_BACK = "rolled_back"


class Release(Record):
    """The present release of one model. Key: the model's name."""

    SCHEMA: ClassVar[str] = "ares.release/1"
    schema_: Literal["ares.release/1"] = Field("ares.release/1", alias="schema")
    model: Identifier
    kind: Literal["harm", "reward", "policy"]
    digest: Sha256
    uri: str
    state: ReleaseState
    changed_at: AwareDatetime
    changed_by: Identifier
    reason: str = ""
    plan_id: Identifier | None = None
    gate_report: Sha256 | None = None
    previous: Sha256 | None = None


class OffsetRange(Part):
    """Offsets start (inclusive) to end (exclusive) of one partition."""

    topic: Identifier
    partition: int = Field(ge=0)
    start: int = Field(ge=0)
    end: int = Field(ge=0)


class Interval(Part):
    """A figure with its 95 % interval; `count` is the number of trials behind it."""

    value: FiniteFloat
    low: FiniteFloat
    high: FiniteFloat
    count: int = Field(ge=0)


class RepairReport(Record):
    """How one repair ended. Key: the plan's id."""

    SCHEMA: ClassVar[str] = "ares.repair-report/1"
    schema_: Literal["ares.repair-report/1"] = Field("ares.repair-report/1", alias="schema")
    plan_id: Identifier
    state: Literal["promoted", "awaiting_approval", "rejected", "failed"]
    method: Identifier
    batch: tuple[OffsetRange, ...]
    reasons: tuple[str, ...]
    before: dict[str, Interval]
    after: dict[str, Interval]
    releases: dict[Slice, Sha256] = Field(default_factory=dict)
    gate_report: Sha256 | None = None
    started_at: AwareDatetime
    finished_at: AwareDatetime


RECORDS: tuple[type[Record], ...] = (
    Interaction,
    Verdict,
    CoupledFailure,
    ReviewItem,
    Label,
    Release,
    RepairReport,
)


def canonical_json(value: Mapping[str, Any] | Sequence[Any]) -> bytes:
    """JSON with sorted keys and no spaces: the form that digests are taken of."""
    return json.dumps(
        value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False
    ).encode()


def digest(value: Mapping[str, Any] | Sequence[Any]) -> str:
    """SHA-256 of the canonical JSON, 64 hexadecimal digits."""
    return hashlib.sha256(canonical_json(value)).hexdigest()


def verdict_id(
    topic: str, partition: int, offset: int, releases: Mapping[str, str], detection_policy: str
) -> str:
    """The same input under the same models and policy has the same id, on every machine."""
    return digest([topic, partition, offset, dict(releases), detection_policy])[:32]
