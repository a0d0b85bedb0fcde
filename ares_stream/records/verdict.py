"""The decision on one interaction. It holds no text."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from enum import StrEnum
from functools import lru_cache
from typing import ClassVar, Literal

from pydantic import Field, FiniteFloat

from ares_stream.records.base import (
    Identifier,
    Instant,
    Offset,
    Part,
    PartitionNumber,
    Probability,
    Record,
    Sha256,
    Slice,
    canonical_json,
)
from ares_stream.records.interaction import Anchor, Lane, Policy


class FailureClass(StrEnum):
    """How policy and reward model did on one interaction (arXiv 2604.18789, types A to C)."""

    CLEAN = "clean"
    REWARD_FAILURE = "reward_failure"
    POLICY_FAILURE = "policy_failure"
    COUPLED_FAILURE = "coupled_failure"
    CONTESTED = "contested"


class SourceCoordinates(Part):
    """Where a record was read."""

    topic: Identifier
    partition: PartitionNumber = Field(ge=0)
    offset: Offset = Field(ge=0)
    timestamp_ms: int = Field(ge=0)


class Coverage(Part):
    """What the judges read of an answer that they did not read in one piece.

    `windows` is the number of overlapping stretches that the judge with the most of them read;
    `encodings` name how parts of the answer were encoded (base64, rot13, …), which were read
    decoded as well; `unread` counts the characters that no judge with windows got to.
    """

    windows: int = Field(ge=1)
    encodings: tuple[Slice, ...] = ()
    unread: int = Field(0, ge=0)


class DomainSign(Part):
    """How far a conversation lies from what a judge was trained on; of several judges the one
    that it lies farthest from.

    `quantile` is the share of held-out conversations like the training rows that lie nearer;
    `unknown` the share of tokens that the tokenizer does not know; `unseen_script` the share of
    the answer's letters in scripts that training did not see; `outside` whether one of them is
    past the limit of the bundle.
    """

    quantile: Probability
    unknown: Probability
    unseen_script: Probability
    outside: bool


class Harm(Part):
    """What the panel of judges says.

    `probability` is calibrated; `judges` holds each judge's own calibrated probability;
    `disagreement` is the largest difference between two judges, 0 with one judge.
    """

    probability: Probability
    judges: dict[Slice, Probability]
    disagreement: Probability = 0.0
    coverage: Coverage | None = None
    """None where every judge read the answer in one piece, or cut it as its bundle says."""
    domain: DomainSign | None = None
    """None where no judge's bundle can tell."""


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
    outlier: bool | None = None
    """Whether the answer lies outside of what the model's benign answers cover, by the distance in
    the model's own space; None where its bundle cannot tell."""


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
    occurred_at: Instant
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
    anchor: Anchor | None = None


def verdict_id(
    topic: str, partition: int, offset: int, releases: Mapping[str, str], detection_policy: str
) -> str:
    """The same input under the same models and policy has the same id, on every machine.

    It is the digest of these five as one JSON array; only the offset changes from record to record.
    """
    before, after = _around_offset(topic, partition, tuple(releases.items()), detection_policy)
    return hashlib.sha256(b"%b%d%b" % (before, offset, after)).hexdigest()[:32]


@lru_cache(maxsize=256)
def _around_offset(
    topic: str, partition: int, releases: tuple[tuple[str, str], ...], detection_policy: str
) -> tuple[bytes, bytes]:
    """The array's JSON in front of its offset and behind it."""
    before = canonical_json([topic, partition])[:-1] + b","
    after = b"," + canonical_json([dict(releases), detection_policy])[1:]
    return before, after
