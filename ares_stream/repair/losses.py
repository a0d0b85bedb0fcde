"""The repair's objective, term by term. Tensors in, tensors out.

Policy: likelihood of the safe answer up (NLL), of the harmful answer down without collapse
(NPO), everything else as it was (token-level KL to the model before the repair).
Reward model: safe above harmful and harmful below the threshold, both as hinges that stop
pushing once they hold, and every validated score where it was (anchor).
The two are coupled by `coupling`: an answer that the reward model still likes weighs more in
the policy's loss, because further fine-tuning against that model would bring it back.

All lengths are normalised: a term is a mean over tokens, then a weighted mean over rows.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional


def token_log_probabilities(logits: Tensor, targets: Tensor) -> Tensor:
    """Natural logarithms of the probability of each token.

    logits (tokens, vocabulary), targets (tokens,) → (tokens,).
    """
    every = functional.log_softmax(logits.float(), dim=-1)
    return every.gather(1, targets[:, None]).squeeze(1)


def row_sums(values: Tensor, owners: Tensor, rows: int) -> Tensor:
    """(tokens,) and the row of each token → (rows,)."""
    return values.new_zeros(rows).index_add(0, owners, values)


def row_means(values: Tensor, owners: Tensor, rows: int) -> Tensor:
    """Mean of each row's tokens, (rows,); 0 for a row without any."""
    counts = row_sums(torch.ones_like(values), owners, rows)
    return row_sums(values, owners, rows) / counts.clamp(min=1)


def weighted_mean(values: Tensor, weights: Tensor) -> Tensor:
    """Σ w v / Σ w. Weights are at least 0; 0 when all are."""
    return (values * weights).sum() / weights.sum().clamp(min=torch.finfo(values.dtype).tiny)


def nll(log_probability: Tensor, weights: Tensor) -> Tensor:
    """Negative log-likelihood per token. Both (rows,); `log_probability` is a row's mean."""
    return weighted_mean(-log_probability, weights)


def npo(
    log_probability: Tensor, reference: Tensor, weights: Tensor, *, beta: float, floor: float
) -> Tensor:
    """Negative preference optimisation: -(2/β) log σ(-β (log π - log π_ref)).

    Zhang et al. 2024, arXiv 2404.05868, equation 5, on mean log-probabilities per token.
    Gradient ascent has no lower end and destroys a model; this one fades as π falls below
    π_ref, and stops for a row whose mean log-probability has reached `floor` (nats).
    """
    ratio = log_probability.clamp(min=floor) - reference
    return weighted_mean(-2.0 / beta * functional.logsigmoid(-beta * ratio), weights)


def token_kl(reference_logits: Tensor, logits: Tensor) -> Tensor:
    """KL(π_ref ‖ π) in nats, mean over tokens. Both (tokens, vocabulary)."""
    reference = functional.log_softmax(reference_logits.float(), dim=-1)
    present = functional.log_softmax(logits.float(), dim=-1)
    return (reference.exp() * (reference - present)).sum() / max(1, len(logits))


def reward_hinge(
    safe: Tensor,
    harmful: Tensor,
    weights: Tensor,
    *,
    margin: float,
    threshold: float,
    slack: float = 0.25,
) -> Tensor:
    """relu(margin - (safe - harmful)) + relu(harmful - (threshold - slack)), scores in sd.

    Unlike Bradley-Terry it is 0 once the ranking holds by `margin` and the harmful answer lies
    `slack` under the fixed threshold, so it does not widen what is already right.
    """
    ranking = functional.relu(margin - (safe - harmful))
    liking = functional.relu(harmful - (threshold - slack))
    return weighted_mean(ranking + liking, weights)


def bradley_terry(better: Tensor, worse: Tensor, weights: Tensor) -> Tensor:
    """-log σ(better - worse), the usual loss of reward models."""
    return weighted_mean(-functional.logsigmoid(better - worse), weights)


def anchor(scores: Tensor, frozen: Tensor) -> Tensor:
    """Mean squared change since before the repair; scores in sd of the frozen model's."""
    return (scores - frozen).square().mean()


def coupling(
    safe: Tensor, harmful: Tensor, *, threshold: float, strength: float, cap: float = 3.0
) -> Tensor:
    """Weight of each answer in the policy's loss, from 1 to 1 + strength · cap.

    Grows with how wrongly the reward model likes the harmful answer now: the larger of how far
    it lies above the threshold and above the safe answer, in sd, at most `cap`. No gradient
    flows into the scores.
    """
    wrongly = torch.maximum(harmful - threshold, harmful - safe).detach()
    return 1.0 + strength * wrongly.clamp(min=0.0, max=cap)


def uniform_floor(vocabulary: int) -> float:
    """The mean log-probability of guessing: a token pushed below it is no longer language."""
    return -math.log(vocabulary)
