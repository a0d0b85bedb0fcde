"""How a batch of failures becomes a plan: the settings of `ares_stream.repair.plan`, apart from it
because every service reads settings and only the repairer plans."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field

from ares_stream.records.base import Probability, Slice


class PlanPolicy(BaseModel):
    """How a batch becomes a plan."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    source_attribute: Slice = "source"
    """The interaction's attribute that names who sent it (a tenant, a user's hash)."""
    max_per_source: int = Field(200, ge=1)
    max_share: float = Field(0.25, gt=0.0, le=1.0)
    """Of the batch, per source; an equal part where there are too few sources for that."""
    uncapped_sources: tuple[str, ...] = ("probe",)
    """Our own probes are not a source that can flood us."""
    near_copy: Probability = 0.85
    """Jaccard similarity of prompt and answer from which two failures are one."""
    family_axes: tuple[Slice, ...] = ("topic", "tactic")
    """Probe components or attributes that make a family. Without any of them, near copies of a
    prompt are a family."""
    family_similarity: Probability = 0.6
    outlier_deviations: float = Field(6.0, gt=0)
    """Robust standard deviations from the batch's median."""
    max_characters: int = Field(16_384, ge=1)
    confirmed_weight: float = Field(2.0, gt=0)
    held_out_share: float = Field(0.2, gt=0.0, lt=1.0)
    replay_per_sample: float = Field(8.0, ge=0.0)
    """How many of each kind of replay per failure, as far as they reach. Part of them is not
    trained on but measured with."""
    min_train: int = Field(8, ge=1)
    refusals: tuple[str, ...] = ()
    """Answers for prompts that have no safe one of their own."""
    seed: int = 0
    context: str = ""
    """Digest of what else the repair depends on (recipe, incumbents): another context makes
    another plan of the same failures."""
