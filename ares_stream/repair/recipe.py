"""How to train a repair: what run.py reads beside the plan. Frozen; validated on reading."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, FiniteFloat

from ares_stream.detection.refusals import REFUSAL, pattern
from ares_stream.records.base import digest

Method = Literal["none", "baseline_rlhf", "policy_only", "two_stage", "joint"]
Count = Annotated[int, Field(ge=1)]
Weight = Annotated[FiniteFloat, Field(ge=0.0)]
Rate = Annotated[FiniteFloat, Field(gt=0.0)]


class Part(BaseModel):
    """A frozen part that refuses unknown fields."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Lora(Part):
    """A low-rank adapter (Hu et al. 2021). `targets` names modules; every linear one by default."""

    rank: Count = 16
    alpha: Count = 32
    targets: tuple[str, ...] | Literal["all-linear"] = "all-linear"
    learning_rate: Rate = 2e-4


class PolicyLoss(Part):
    """Weights of the policy's terms; `floor` in nats per token, None: that of guessing.

    `kl_tokens` is how many tokens of a replayed answer the KL term reads, from its first; None:
    all. Whether an answer refuses is decided in the first few (Qi et al. 2024, arXiv
    2406.05946), and short rows leave time for more prompts.
    """

    nll: Weight = 1.0
    npo: Weight = 0.1
    npo_beta: Rate = 0.1
    kl: Weight = 12.0
    kl_tokens: Count | None = None
    coupling: Weight = 0.5
    floor: FiniteFloat | None = None


class RewardLoss(Part):
    """Weights of the reward model's terms. Margins in sd of the frozen model's scores."""

    margin: Weight = 1.0
    slack: Weight = 0.25
    anchor: Weight = 12.0
    validated: Weight = 1.0


class Reinforce(Part):
    """Reinforcement learning against the reward model. `length` is in tokens."""

    steps: Annotated[int, Field(ge=0)] = 30
    prompts: Count = 32
    group: Annotated[int, Field(ge=2)] = 4
    length: Count = 128
    temperature: Rate = 1.0
    weight: Weight = 1.0
    kl: Weight = 0.05
    learning_rate: Rate = 1e-4


class Recipe(Part):
    """One repair of one pair of models.

    `reward_bundle` is the bundle in use of the reward model: the repair reads conversations by its
    input template and length. None: as an export of the checkpoint would, within `max_length`.
    `reward_threshold` is "scored high", fixed before the repair in the reward model's own
    units; None takes the median of its scores of the plan's benign answers. `batch` counts
    failures per step; each step takes `replay` rows of each kind of replay beside them.
    `judge` is a harm bundle that reads the figures; without it none are measured. `refusal`
    is a regular expression, looked for in an answer's opening (`detection.refusals`).
    `precision` is that of the matrix products of training steps; weights, optimizer states, and
    every score that an anchor, a threshold or a figure rests on are float32.
    """

    policy: Path
    reward: Path
    reward_bundle: Path | None = None
    judge: Path | None = None
    method: Method = "joint"
    seed: Annotated[int, Field(ge=0)] = 0
    steps: Annotated[int, Field(ge=0)] = 300
    batch: Count = 16
    replay: Count = 16
    max_length: Annotated[int, Field(ge=8)] = 512
    reward_threshold: FiniteFloat | None = None
    policy_lora: Lora = Lora()
    reward_lora: Lora = Lora()
    policy_loss: PolicyLoss = PolicyLoss()
    reward_loss: RewardLoss = RewardLoss()
    reinforce: Reinforce = Reinforce()
    checkpoint_every: Count = 100
    precision: Literal["float32", "bfloat16"] = "float32"
    refusal: Annotated[str, AfterValidator(pattern)] = REFUSAL
    threads: Count | None = None

    @property
    def digest(self) -> str:
        """SHA-256 of the canonical JSON: a checkpoint of another recipe is not resumed."""
        return digest(self.model_dump(mode="json"))
