"""Fine-tuning of policy and reward model on one plan, by one of five methods.

    none            neither model changes
    baseline_rlhf   more reinforcement learning against the reward model as it is
    policy_only     the policy's loss on the failures; the reward model as it is
    two_stage       the reward model first, by Bradley-Terry; then the policy, then
                    reinforcement learning against the new reward model
    joint           both at once, coupled; then reinforcement learning against the new
                    reward model

All read the same plan, in the same order, with the same adapters and batches. A method gives
the policy, if it trains it, the same number of updates: `policy_only` spends the steps of the
reinforcement learning, which its reward model would misguide, on further supervised ones. The
reward model has one update per supervised step in `two_stage`, half as many in `joint`.

Everything random is a function of (seed, phase, step), so a run that was killed goes on from
its last checkpoint to the same adapters.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from ares_stream.errors import RepairError
from ares_stream.records.base import stable_seed
from ares_stream.records.interaction import Message
from ares_stream.repair import losses
from ares_stream.repair.models import Adapted, Encoded, PolicyModel, RewardModel
from ares_stream.repair.picks import rows_of_step
from ares_stream.repair.plan import Plan, ReplaySample
from ares_stream.repair.recipe import Method, Recipe
from ares_stream.repair.reinforce import Scale, policy_gradient, roll_out

Progress = Callable[[str, int, int], None]
"""Called with stage, steps done and steps in all."""
Phase = Literal["rlhf", "policy", "reward", "joint", "reinforce"]

_REWARD_EVERY = 2
"""Policy updates per update of the reward model in `joint`: its hinges hold long before the
policy has learnt, and each further update would only cost."""
_CLIP = 1.0
_WARM_UP = 0.05
_FINAL_RATE = 0.1
_MANIFEST = "checkpoint.json"


def phases(recipe: Recipe) -> tuple[tuple[Phase, int], ...]:
    """What a method does, with the number of steps of each phase."""
    supervised, reinforced = recipe.steps, recipe.reinforce.steps
    by_method: dict[Method, tuple[tuple[Phase, int], ...]] = {
        "none": (),
        "baseline_rlhf": (("rlhf", reinforced),),
        "policy_only": (("policy", supervised + reinforced),),
        "two_stage": (
            ("reward", supervised),
            ("policy", supervised),
            ("reinforce", reinforced),
        ),
        "joint": (("joint", supervised), ("reinforce", reinforced)),
    }
    return tuple((name, steps) for name, steps in by_method[recipe.method] if steps)


class Trainer:
    """Trains the adapters of `policy` and `reward` in place.

    `checkpoints` is where state is kept; None keeps none. Raises RepairError for a plan without
    failures or benign replay, or when a loss is no number.
    """

    def __init__(
        self,
        policy: PolicyModel,
        reward: RewardModel,
        plan: Plan,
        recipe: Recipe,
        *,
        checkpoints: Path | None = None,
        progress: Progress | None = None,
    ) -> None:
        from accelerate import Accelerator, DistributedDataParallelKwargs

        if not plan.train or not plan.benign:
            raise RepairError(
                f"plan {plan.id}: needs failures and benign replay; without the replay the policy "
                "learns to refuse everything"
            )
        self._recipe = recipe
        self._plan = plan
        self._checkpoints = checkpoints
        self._progress = progress
        # Buffers never change here, and sharing them at each call would make processes that score
        # unequally many batches wait for each other for ever.
        shared = DistributedDataParallelKwargs(broadcast_buffers=False)
        self._accelerator = Accelerator(kwargs_handlers=[shared])
        self.policy, self.reward = policy, reward
        for side in (policy, reward):
            side.network.to(self._accelerator.device)
            if self._accelerator.num_processes > 1:
                side.runner = self._accelerator.prepare_model(side.runner)
        self._optimizers = {
            "policy": _optimizer(policy, recipe.policy_lora.learning_rate),
            "reward": _optimizer(reward, recipe.reward_lora.learning_rate),
        }
        self._encode()
        self._measure()

    def train(self) -> None:
        """Run every phase, from the newest checkpoint of the same plan and recipe if any."""
        every = phases(self._recipe)
        at_phase, at_step = self._resume()
        for index, (phase, steps) in enumerate(every):
            if index < at_phase:
                continue
            for step in range(at_step if index == at_phase else 0, steps):
                self._set_rates(phase, step, steps)
                self._step(phase, step)
                if self._progress is not None:
                    self._progress(phase, step + 1, steps)
                if (step + 1) % self._recipe.checkpoint_every == 0 or step + 1 == steps:
                    self._save(index, step + 1)

    # Data

    def _encode(self) -> None:
        plan = self._plan

        def replayed(sample: ReplaySample) -> Encoded:
            tokens = self._recipe.policy_loss.kl_tokens
            return self.policy.encode(sample.messages, sample.response, tokens=tokens)

        self._weights = torch.tensor([sample.weight for sample in plan.train])
        replay = (*plan.benign, *plan.over_refusal)
        self._policy_rows = {
            "safe": [self.policy.encode(s.prompt_messages, s.safe) for s in plan.train],
            "harmful": [self.policy.encode(s.prompt_messages, s.harmful) for s in plan.train],
            "benign": [replayed(s) for s in plan.benign],
            "over_refusal": [replayed(s) for s in plan.over_refusal],
        }
        self._reward_rows = {
            "safe": [self.reward.encode(s.prompt_messages, s.safe) for s in plan.train],
            "harmful": [self.reward.encode(s.prompt_messages, s.harmful) for s in plan.train],
            "replay": [self.reward.encode(s.messages, s.response) for s in replay],
            "chosen": [self.reward.encode(s.messages, s.chosen) for s in plan.validated],
            "rejected": [self.reward.encode(s.messages, s.rejected) for s in plan.validated],
        }
        failures: list[Sequence[Message]] = [s.prompt_messages for s in plan.train]
        benign: list[Sequence[Message]] = [s.messages for s in replay]
        self._prompts = {"failures": failures, "benign": benign}

    def _measure(self) -> None:
        """What the models say before the repair: anchors, scale, reference likelihoods."""
        with self.reward.before_repair():
            replay, chosen, rejected = (
                self.reward.score(self._reward_rows[name])
                for name in ("replay", "chosen", "rejected")
            )
        frozen = torch.cat([replay, chosen, rejected])
        threshold = self._recipe.reward_threshold
        if threshold is None:
            threshold = float(replay[: len(self._plan.benign)].median())
        mean, sd = float(frozen.mean()), float(frozen.std())
        if not sd > 0:
            raise RepairError("reward: gives every replayed answer the same score; nothing to hold")
        self.scale = Scale(mean, sd, (threshold - mean) / sd)
        scored = {"replay": replay, "chosen": chosen, "rejected": rejected}
        self._frozen = {
            name: self.scale(scores).to(self.reward.device) for name, scores in scored.items()
        }
        self._reference = self._log_probabilities(self._policy_rows["harmful"])
        floor = self._recipe.policy_loss.floor
        vocabulary = self.policy.network.get_base_model().config.vocab_size
        self._floor = losses.uniform_floor(vocabulary) if floor is None else floor

    def _log_probabilities(self, rows: Sequence[Encoded]) -> Tensor:
        """Mean log-probability per token of each answer, before the repair."""
        found = []
        with self.policy.before_repair():
            for start in range(0, len(rows), self._recipe.batch):
                batch = self.policy.collate(rows[start : start + self._recipe.batch])
                each = losses.token_log_probabilities(self.policy.logits(batch), batch.targets)
                found.append(losses.row_means(each, batch.owners, len(batch)).cpu())
        return torch.cat(found)

    # Steps

    def _step(self, phase: Phase, step: int) -> None:
        recipe = self._recipe
        if phase == "reinforce":
            step += recipe.steps  # goes on where the supervised steps left the failures
        size = min(recipe.batch, len(self._plan.train))
        picked = self._picks(len(self._plan.train), size, step, "failures")
        trained: list[str] = []
        terms: list[Tensor] = []
        coupled = None
        if phase == "reward" or (phase == "joint" and step % _REWARD_EVERY == 0):
            with self._in_precision():
                term, liking = self._reward_terms(picked, step, joint=phase == "joint")
            terms.append(term)
            trained.append("reward")
        elif phase == "joint":
            liking = self._liking(picked)
        if phase == "joint":
            coupled = losses.coupling(
                *liking, threshold=self.scale.threshold, strength=recipe.policy_loss.coupling
            )
        if phase in ("policy", "joint", "reinforce"):
            with self._in_precision():
                terms.append(self._policy_terms(picked, step, coupled))
            trained.append("policy")
        if phase in ("rlhf", "reinforce"):
            terms.append(self._reinforce_terms(phase, step, with_kl=phase == "rlhf"))
            trained.append("policy")
        loss = torch.stack(terms).sum()
        if not torch.isfinite(loss):
            raise RepairError(f"{phase}: step {step}: the loss is no number; lower learning_rate")
        for name in dict.fromkeys(trained):
            self._optimizers[name].zero_grad()
        self._accelerator.backward(loss)
        for name in dict.fromkeys(trained):
            side: Adapted = self.policy if name == "policy" else self.reward
            torch.nn.utils.clip_grad_norm_(list(side.trainable().values()), _CLIP)
            self._optimizers[name].step()

    def _reward_terms(self, picked: list[int], step: int, *, joint: bool) -> tuple[Tensor, Tensor]:
        """The reward model's loss, and how it scores safe and harmful answers now, (2, rows)."""
        recipe, rows, scale = self._recipe, self._reward_rows, self.scale
        pairs = self._picks(len(rows["chosen"]), recipe.replay, step, "validated")
        held = self._picks(len(rows["replay"]), recipe.replay, step, "anchor") if joint else []
        batch = self.reward.collate(
            [
                *(rows["safe"][i] for i in picked),
                *(rows["harmful"][i] for i in picked),
                *(rows["chosen"][i] for i in pairs),
                *(rows["rejected"][i] for i in pairs),
                *(rows["replay"][i] for i in held),
            ]
        )
        self.reward.runner.train()
        scores = scale(self.reward.scores(batch))
        counts = [len(picked)] * 2 + [len(pairs)] * 2 + [len(held)]
        safe, harmful, chosen, rejected, replay = torch.split(scores, counts)
        weights = self._weights[picked].to(scores.device)
        if not joint:
            loss = losses.bradley_terry(safe, harmful, weights)
            if pairs:
                loss = loss + losses.bradley_terry(chosen, rejected, torch.ones_like(chosen))
            return loss, torch.stack([safe, harmful])
        term = recipe.reward_loss
        limits = {"margin": term.margin, "threshold": scale.threshold, "slack": term.slack}
        loss = losses.reward_hinge(safe, harmful, weights, **limits)
        if pairs:
            ranking = torch.relu(term.margin - (chosen - rejected)).mean()
            loss = loss + term.validated * ranking
        before = self._frozen
        # A pair that was ranked wrongly is a failure itself, and no score to hold on to.
        right = before["chosen"][pairs] > before["rejected"][pairs]
        now = torch.cat([replay, chosen[right], rejected[right]])
        wanted = torch.cat(
            [
                before["replay"][held],
                before["chosen"][pairs][right],
                before["rejected"][pairs][right],
            ]
        )
        return loss + term.anchor * losses.anchor(now, wanted), torch.stack([safe, harmful])

    def _liking(self, picked: list[int]) -> Tensor:
        """The same scores without training."""
        rows = self._reward_rows
        both = [rows[kind][i] for kind in ("safe", "harmful") for i in picked]
        return self.scale(self.reward.score(both)).view(2, -1)

    def _policy_terms(self, picked: list[int], step: int, coupled: Tensor | None) -> Tensor:
        recipe, rows, term = self._recipe, self._policy_rows, self._recipe.policy_loss
        kept = self.policy.collate(
            [
                rows[kind][i]
                for kind in ("benign", "over_refusal")
                for i in self._picks(len(rows[kind]), recipe.replay, step, kind)
            ]
        )
        batch = self.policy.collate(
            [*(rows["safe"][i] for i in picked), *(rows["harmful"][i] for i in picked)]
        )
        failures = len(picked)
        with self.policy.before_repair():
            reference = self.policy.logits(kept)
        self.policy.runner.train()
        # Two passes: replayed answers may be shorter, and padding costs as much as text.
        each = losses.token_log_probabilities(self.policy.logits(batch), batch.targets)
        kl = losses.token_kl(reference, self.policy.logits(kept))
        means = losses.row_means(each, batch.owners, len(batch))
        weights = self._weights[picked].to(means.device)
        if coupled is not None:
            weights = weights * coupled.to(means.device)
        pushed = losses.npo(
            means[failures:],
            self._reference[picked].to(means.device),
            weights,
            beta=term.npo_beta,
            floor=self._floor,
        )
        return term.nll * losses.nll(means[:failures], weights) + term.npo * pushed + term.kl * kl

    def _reinforce_terms(self, phase: Phase, step: int, *, with_kl: bool) -> Tensor:
        settings = self._recipe.reinforce
        half = max(1, settings.prompts // 2)
        prompts = [
            self._prompts[kind][i]
            for kind in ("failures", "benign")
            for i in self._picks(len(self._prompts[kind]), half, step, f"prompts-{kind}")
        ]
        seed = stable_seed(self._recipe.seed, phase, step, self._accelerator.process_index)
        rollouts = roll_out(self.policy, self.reward, prompts, settings, self.scale, seed)
        self.policy.runner.train()
        # On the failures' prompts the policy before the repair is what must not be kept: there
        # only plain RLHF is held to it; the others are held by the KL term of the replay.
        with self._in_precision():
            return policy_gradient(self.policy, rollouts, settings, held=with_kl)

    def _in_precision(self) -> torch.autocast:
        """Where a step's passes run; sampling and scoring run as the models are."""
        device, lower = self._accelerator.device.type, self._recipe.precision == "bfloat16"
        return torch.autocast(device, dtype=torch.bfloat16, enabled=lower)

    def _picks(self, count: int, size: int, step: int, stream: str) -> list[int]:
        """Rows of a step: every row once per epoch; this process's share of them."""
        rows = rows_of_step(count, size, step, seed=self._recipe.seed, stream=stream)
        processes = self._accelerator.num_processes
        return rows[self._accelerator.process_index :: processes] or rows[:1]

    def _set_rates(self, phase: Phase, step: int, steps: int) -> None:
        """A short rise, then a straight fall; reinforcement has its own, constant rate."""
        share = min(1.0, (step + 1) / max(1.0, _WARM_UP * steps))
        share *= 1 - (1 - _FINAL_RATE) * step / steps
        recipe = self._recipe
        peaks = {
            "policy": recipe.policy_lora.learning_rate,
            "reward": recipe.reward_lora.learning_rate,
        }
        if phase in ("rlhf", "reinforce"):
            peaks["policy"], share = recipe.reinforce.learning_rate, 1.0
        for name, peak in peaks.items():
            for group in self._optimizers[name].param_groups:
                group["lr"] = peak * share

    # Checkpoints

    def _save(self, phase: int, step: int) -> None:
        if self._checkpoints is None or not self._accelerator.is_main_process:
            return
        folder = self._checkpoints / f"{phase}-{step:06d}"
        partial = folder.with_suffix(".partial")
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        for name, side in (("policy", self.policy), ("reward", self.reward)):
            save_file(_state(side, self._optimizers[name]), partial / f"{name}.safetensors")
        manifest = {
            "phase": phase, "step": step, "plan": self._plan.id, "recipe": self._recipe.digest,
        }  # fmt: skip
        (partial / _MANIFEST).write_text(json.dumps(manifest), encoding="utf-8")
        shutil.rmtree(folder, ignore_errors=True)
        partial.replace(folder)
        for old in self._checkpoints.iterdir():
            if old != folder:
                shutil.rmtree(old)

    def _resume(self) -> tuple[int, int]:
        """Load the newest checkpoint. Gives (phase, steps of it that are done)."""
        if self._checkpoints is None or not self._checkpoints.is_dir():
            return 0, 0
        for folder in sorted(self._checkpoints.iterdir(), reverse=True):
            manifest = folder / _MANIFEST
            if folder.suffix == ".partial" or not manifest.is_file():
                continue
            found = json.loads(manifest.read_text(encoding="utf-8"))
            if (found["plan"], found["recipe"]) != (self._plan.id, self._recipe.digest):
                raise RepairError(
                    f"{folder}: is of another plan or recipe; give this run a folder of its own"
                )
            for name, side in (("policy", self.policy), ("reward", self.reward)):
                _restore(side, self._optimizers[name], load_file(folder / f"{name}.safetensors"))
            return int(found["phase"]), int(found["step"])
        return 0, 0


def _optimizer(side: Adapted, rate: float) -> Any:
    return torch.optim.AdamW(list(side.trainable().values()), lr=rate, weight_decay=0.0)


def _state(side: Adapted, optimizer: Any) -> dict[str, Tensor]:
    """Weights and moments as plain tensors: nothing that reading would have to unpickle."""
    found: dict[str, Tensor] = {}
    for name, parameter in side.trainable().items():
        found[f"{name}#weight"] = parameter.detach().contiguous()
        for key, value in optimizer.state.get(parameter, {}).items():
            found[f"{name}#{key}"] = torch.as_tensor(value).contiguous()
    return found


def _restore(side: Adapted, optimizer: Any, state: dict[str, Tensor]) -> None:
    for name, parameter in side.trainable().items():
        parameter.data.copy_(state[f"{name}#weight"])
        moments = {
            key: state[f"{name}#{key}"].clone()
            for key in ("step", "exp_avg", "exp_avg_sq")
            if f"{name}#{key}" in state
        }
        if moments:
            optimizer.state[parameter] = {
                key: value if key == "step" else value.to(parameter.device)
                for key, value in moments.items()
            }
