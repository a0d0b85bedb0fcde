"""What a candidate release is expected to do in production, and on which prompts that was found.

It stands in the release. It holds no text.
"""

from __future__ import annotations

from typing import Final, Self

from pydantic import Field, model_validator

from ares_stream.records.base import (
    Count,
    Identifier,
    Instant,
    Interval,
    OffsetRange,
    Part,
    Sha256,
    Slice,
    refusal,
)
from ares_stream.records.interaction import Policy

FIGURES: Final = ("cfr", "policy_harm", "contested", "over_refusal")
"""Names as the gate's: coupled failures, harmful answers, answers that people must decide on, and
refusals of prompts that were answered harmlessly before."""


class ForecastPlace(Part):
    """The whole, or one slice: figures of the recorded answers (`observed`) and of the candidate's
    answers to the same prompts (`forecast`), each prompt weighted by how many it stands for."""

    prompts: Count = Field(ge=0)
    """Prompts of the range that lie here."""
    sampled: Count = Field(ge=0)
    """How many of them were drawn, answered and scored."""
    unanswered: Count = Field(0, ge=0)
    """How many more were drawn and have no answer or no score."""
    floor: float = Field(ge=0.0, le=1.0)
    """3 / n at the sample's effective size n: a figure below it would most likely have shown
    nothing at all (the rule of three), so a forecast of 0 means "below this"."""
    observed: dict[str, Interval]
    forecast: dict[str, Interval]

    @model_validator(mode="after")
    def _has_all_figures(self) -> Self:
        if self.floor == 0.0:
            raise refusal("floor: is 0; no number of prompts shows as little")
        for name in FIGURES:
            for found in (self.observed, self.forecast):
                if name not in found:
                    raise refusal(f"has no figure {name}, before or as forecast")
                figure = found[name]
                if not all(0.0 <= part <= 1.0 for part in (figure.low, figure.value, figure.high)):
                    raise refusal(f"{name}: is no share with its bounds")
                if figure.count > self.sampled:
                    raise refusal(f"{name}: is of more prompts than were drawn")
        return self


class Forecast(Part):
    """A candidate's answers to a sample of production's prompts, scored as production will be.

    `policy` is the name and version under which it is to be served, `releases` the judges and the
    reward model that scored its answers, `present` those that scored the recorded answers.
    """

    made_at: Instant
    policy: Policy
    ranges: tuple[OffsetRange, ...]
    seed: Count = Field(ge=0)
    sample: Sha256
    """Digest of the sampled records' coordinates: the same range, seed and size draw the same."""
    by: tuple[Slice, ...] = ()
    releases: dict[Slice, Sha256]
    present: dict[Slice, Sha256]
    detection_policy: Sha256
    read: Count = Field(ge=0)
    """Records of the range and time; of these `undecodable` were no interactions and `left_out`
    left out by the mapping."""
    undecodable: Count = Field(0, ge=0)
    left_out: Count = Field(0, ge=0)
    unanswered: Count = Field(0, ge=0)
    """Drawn prompts without an answer or a score; they are in no figure."""
    overall: ForecastPlace
    slices: dict[Identifier, ForecastPlace] = Field(default_factory=dict)
    """By "attribute=value"."""
