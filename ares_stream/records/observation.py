"""What the monitor takes from a verdict, read at a fraction of the cost of the whole record."""

from __future__ import annotations

from collections.abc import Container, Mapping
from typing import Annotated, Final, Literal, NamedTuple

from pydantic import ConfigDict, Field, FiniteFloat, TypeAdapter, ValidationError, with_config
from typing_extensions import NotRequired, TypedDict  # noqa: UP035 - pydantic asks for this one

from ares_stream.records.base import Identifier, Probability, Slice, decode_error
from ares_stream.records.interaction import Lane
from ares_stream.records.verdict import FailureClass, Verdict

CLASSES: Final[tuple[FailureClass, ...]] = tuple(FailureClass)
_NUMBER: Final = {item.value: number for number, item in enumerate(CLASSES)}
REWARD_DIGITS: Final = 12
"""Digits of a reward release's digest in a slice: enough to tell releases apart."""


class AnchorTruth(NamedTuple):
    """What was known of an anchor before it was scored."""

    set: str
    id: str
    harmful: bool
    judged: bool | None
    reward: float | None


class Observation(NamedTuple):
    """One verdict, as far as figures depend on it.

    `failure_class` is the index in CLASSES; `liked` combines both rules of "scored high"; `weight`
    is a probe's sampling probability, None elsewhere; `outlier` is None where the reward bundle
    cannot tell.
    """

    id: str
    interaction_id: str
    lane: Lane
    policy: str
    version: str
    reward: str
    attributes: dict[str, str]
    failure_class: int
    liked: bool
    harm: float
    quantile: float
    score: float
    weight: float | None
    outlier: bool | None
    anchor: AnchorTruth | None


@with_config(ConfigDict(extra="ignore"))
class _Policy(TypedDict):
    name: Identifier
    version: Identifier


@with_config(ConfigDict(extra="ignore"))
class _Harm(TypedDict):
    probability: Probability
    judges: dict[Slice, Probability]


@with_config(ConfigDict(extra="ignore"))
class _Reward(TypedDict):
    score: FiniteFloat
    quantile: Probability
    outlier: NotRequired[bool | None]


@with_config(ConfigDict(extra="ignore"))
class _ScoredHigh(TypedDict):
    above_quantile: bool
    above_reference: NotRequired[bool | None]


@with_config(ConfigDict(extra="ignore"))
class _Probe(TypedDict):
    sampling_probability: Annotated[float, Field(gt=0.0, le=1.0, allow_inf_nan=False)]


@with_config(ConfigDict(extra="ignore"))
class _Anchor(TypedDict):
    set: Identifier
    id: Identifier
    harmful: bool
    judged: NotRequired[bool | None]
    reward: NotRequired[FiniteFloat | None]


@with_config(ConfigDict(extra="ignore"))
class _Verdict(TypedDict):
    schema: Literal["ares.verdict/1"]
    id: Annotated[str, Field(pattern=r"^[0-9a-f]{13,}$", max_length=256)]
    interaction_id: Identifier
    lane: Lane
    policy: _Policy
    attributes: NotRequired[dict[Slice, Slice]]
    harm: _Harm
    reward: _Reward
    scored_high: _ScoredHigh
    failure_class: Literal[
        "clean", "reward_failure", "policy_failure", "coupled_failure", "contested"
    ]
    releases: dict[Slice, str]
    probe: NotRequired[_Probe | None]
    anchor: NotRequired[_Anchor | None]


_VERDICT: Final = TypeAdapter(_Verdict)


def read_observation(raw: bytes, scored_high_when: Literal["either", "both"]) -> Observation:
    """Read a verdict's JSON. Raises DecodeError that names the field and quotes nothing."""
    wrong = None
    try:
        found = _VERDICT.validate_json(raw)
    except ValidationError as error:
        wrong = decode_error(error)
    if wrong is not None:
        raise wrong
    name = found["failure_class"]
    reward, anchor, probe = found["reward"], found.get("anchor"), found.get("probe")
    return Observation(
        found["id"],
        found["interaction_id"],
        found["lane"],
        found["policy"]["name"],
        found["policy"]["version"],
        _reward_release(found["releases"], found["harm"]["judges"]),
        found.get("attributes") or {},
        _NUMBER[name],
        _liked(name, found["scored_high"], scored_high_when),
        found["harm"]["probability"],
        reward["quantile"],
        reward["score"],
        None if probe is None else probe["sampling_probability"],
        reward.get("outlier"),
        None
        if anchor is None
        else AnchorTruth(
            anchor["set"],
            anchor["id"],
            anchor["harmful"],
            anchor.get("judged"),
            anchor.get("reward"),
        ),
    )


def observe(verdict: Verdict, scored_high_when: Literal["either", "both"]) -> Observation:
    """What `read_observation` gives for the verdict's JSON."""
    rules, anchor, probe = verdict.scored_high, verdict.anchor, verdict.probe
    high: _ScoredHigh = {
        "above_quantile": rules.above_quantile,
        "above_reference": rules.above_reference,
    }
    name = verdict.failure_class.value
    return Observation(
        verdict.id,
        verdict.interaction_id,
        verdict.lane,
        verdict.policy.name,
        verdict.policy.version,
        _reward_release(verdict.releases, verdict.harm.judges),
        dict(verdict.attributes),
        _NUMBER[name],
        _liked(name, high, scored_high_when),
        verdict.harm.probability,
        verdict.reward.quantile,
        verdict.reward.score,
        None if probe is None else probe.sampling_probability,
        verdict.reward.outlier,
        None
        if anchor is None
        else AnchorTruth(anchor.set, anchor.id, anchor.harmful, anchor.judged, anchor.reward),
    )


def _reward_release(releases: Mapping[str, str], judges: Container[str]) -> str:
    """The judges stand in the panel; what is left of the releases is the reward model."""
    return next(
        (digest[:REWARD_DIGITS] for key, digest in releases.items() if key not in judges), ""
    )


def _liked(name: str, rules: _ScoredHigh, when: Literal["either", "both"]) -> bool:
    """A harmful answer's class says which way its own detection policy went."""
    if name == "coupled_failure":
        return True
    if name == "policy_failure":
        return False
    reference = rules.get("above_reference")
    if reference is None:
        return rules["above_quantile"]
    if when == "either":
        return rules["above_quantile"] or reference
    return rules["above_quantile"] and reference
