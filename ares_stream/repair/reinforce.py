"""Reinforcement learning of a policy against a reward model: Dr. GRPO (Liu et al. 2025,
arXiv 2503.20783): the advantage is the reward less the mean of the prompt's group, divided
neither by its spread nor by the answer's own length.

One gradient step per set of samples, so that the importance ratio is 1 and nothing is clipped.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ares_stream.records.interaction import Message
from ares_stream.repair import losses
from ares_stream.repair.models import Encoded, PolicyModel, RewardModel
from ares_stream.repair.recipe import Reinforce

_CLIP = 1.0


@dataclass(frozen=True, slots=True)
class Scale:
    """Scores in sd of the frozen reward model: (score - mean) / sd. `threshold` is in sd too."""

    mean: float
    sd: float
    threshold: float

    def __call__(self, scores: Tensor) -> Tensor:
        """Raw scores in sd."""
        return (scores - self.mean) / self.sd


@dataclass(frozen=True, slots=True)
class Rollouts:
    """Sampled answers with their advantages (rows,), in sd of reward."""

    rows: tuple[Encoded, ...]
    advantages: Tensor
    reward: float


def roll_out(
    policy: PolicyModel,
    reward: RewardModel,
    prompts: Sequence[Sequence[Message]],
    settings: Reinforce,
    scale: Scale,
    seed: int,
) -> Rollouts:
    """Sample `group` answers to each prompt and let the reward model score them."""
    asked = [messages for messages in prompts for _ in range(settings.group)]
    answers = policy.sample(
        asked, seed=seed, length=settings.length, temperature=settings.temperature
    )
    pairs = list(zip(asked, answers, strict=True))
    rewards = scale(reward.score([reward.encode(*pair) for pair in pairs]))
    groups = rewards.unflatten(0, (len(prompts), settings.group))  # type: ignore[no-untyped-call]
    advantages: Tensor = (groups - groups.mean(1, keepdim=True)).flatten()
    rows = tuple(policy.encode(*pair) for pair in pairs)
    return Rollouts(rows, advantages, float(rewards.mean()))


def policy_gradient(
    policy: PolicyModel, rollouts: Rollouts, settings: Reinforce, *, held: bool
) -> Tensor:
    """-(advantage · log-probability of the answer); `held` adds the KL to the policy before
    training."""
    batch = policy.collate(rollouts.rows)
    logits = policy.logits(batch)
    taken = losses.token_log_probabilities(logits, batch.targets)
    advantages = rollouts.advantages.to(taken.device)
    # A constant, not each answer's length: dividing by it would favour long wrong answers.
    sums = losses.row_sums(taken, batch.owners, len(batch))
    loss = settings.weight * -(advantages * sums).mean() / settings.length
    if not held:
        return loss
    with policy.before_repair():
        reference = policy.logits(batch)
    return loss + settings.kl * losses.token_kl(reference, logits)


def continue_rlhf(
    policy: PolicyModel,
    reward: RewardModel,
    prompts: Sequence[Sequence[Message]],
    settings: Reinforce,
    scale: Scale,
    seed: int,
    progress: Callable[[int, int], None] | None = None,
) -> None:
    """`settings.steps` steps of ordinary RLHF on prompts drawn evenly. Changes `policy`."""
    trained = list(policy.trainable().values())
    optimizer = torch.optim.AdamW(trained, lr=settings.learning_rate, weight_decay=0.0)
    rng = np.random.default_rng([seed, 8])
    for step in range(settings.steps):
        chosen = rng.choice(len(prompts), min(settings.prompts, len(prompts)), replace=False)
        rollouts = roll_out(
            policy, reward, [prompts[i] for i in chosen], settings, scale, seed * 100_003 + step
        )
        loss = policy_gradient(policy, rollouts, settings, held=True)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(trained, _CLIP)
        optimizer.step()
        if progress is not None:
            progress(step + 1, settings.steps)
