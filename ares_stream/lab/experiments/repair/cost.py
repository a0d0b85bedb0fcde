"""What the joint repair costs beside TRL's RewardTrainer followed by its DPOTrainer, and what
each leaves behind.

The same victim, preference pairs, adapters, thread and pairs per update. TRL makes as many
passes over the pairs as it does unless told otherwise; the joint side takes the updates of its
recipe and its reinforcement learning. Each side's time includes its own preparation of the
data, and not the loading of libraries. It is CPU time of the one thread: on idle cores the
same as that of a clock, and not troubled by what else runs.
"""

from __future__ import annotations

import importlib
import os
import tempfile
import time
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ares_stream.lab.experiments.repair.methods import (
    RECIPE,
    TEST_PROMPTS,
    gather,
    measured,
    recipe_for,
)
from ares_stream.lab.victims.evaluate import evaluate, load_policy, load_reward
from ares_stream.lab.victims.victim import Victim, make_victim
from ares_stream.repair.models import PolicyModel, RewardModel, load_pair
from ares_stream.repair.plan import Plan
from ares_stream.repair.recipe import Lora, Recipe
from ares_stream.repair.training import Trainer
from ares_stream.training.checkpoints import quiet_transformers


@dataclass(frozen=True, slots=True)
class _Spent:
    """CPU seconds before and in training, updates made, and what was trained."""

    prepared: float
    trained: float
    updates: int
    network: Any
    tokenizer: Any

    @property
    def seconds(self) -> float:
        return self.prepared + self.trained

    def at(self, updates: int) -> float:
        """Seconds of so many updates of the same kind."""
        return self.prepared + self.trained * updates / self.updates


def run_cost(seed: int, *, cache: Path | None = None, recipe: Recipe = RECIPE) -> dict[str, Any]:
    """Seconds and figures of each side. `joint_over_trl` is the ratio of all the seconds;
    `joint_over_trl_equal_updates` that against as many updates of each TRL trainer as the joint
    side has supervised steps. Needs the `bench` extra."""
    import torch

    importlib.import_module("trl")  # Before the clock starts.

    victim = make_victim(seed, cache)
    plan = gather(victim)
    recipe = recipe_for(victim, "joint", recipe)
    threads = torch.get_num_threads()
    torch.set_num_threads(recipe.threads or threads)
    try:
        joint, repaired = _joint(plan, recipe)
        reward, policy = _trl(victim, plan, recipe)
        untouched = load_policy(victim.policy_dir), load_reward(victim.reward_dir)
        figures = {
            "none": evaluate(*untouched, untouched[1], victim.world, "test", TEST_PROMPTS, 31),
            "joint": measured(victim, *repaired, "test")[0],
            "trl": measured(victim, policy, reward, "test")[0],
        }
    finally:
        torch.set_num_threads(threads)
    return {
        "schema": "ares.repair-cost/2",
        "seed": seed,
        "pairs": len(plan.train) + len(plan.validated),
        "pairs_per_update": recipe.batch + recipe.replay,
        "joint_updates": recipe.steps,
        "joint_reinforce_steps": recipe.reinforce.steps,
        "trl_updates": {"reward": reward.updates, "dpo": policy.updates},
        "threads": recipe.threads,
        "cores": len(os.sched_getaffinity(0)),
        "joint_seconds": joint,
        "trl_reward_seconds": reward.seconds,
        "trl_dpo_seconds": policy.seconds,
        "joint_over_trl": joint / (reward.seconds + policy.seconds),
        "joint_over_trl_equal_updates": joint / (reward.at(recipe.steps) + policy.at(recipe.steps)),
        "figures": figures,
    }


def _joint(plan: Plan, recipe: Recipe) -> tuple[float, tuple[PolicyModel, RewardModel]]:
    policy, reward = load_pair(recipe)
    started = time.process_time()
    Trainer(policy, reward, plan, recipe).train()
    return time.process_time() - started, (policy, reward)


def _trl(victim: Victim, plan: Plan, recipe: Recipe) -> tuple[_Spent, _Spent]:
    """RewardTrainer and DPOTrainer, from data to the last update."""
    from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

    # trl exports its classes lazily, which a type checker does not see.
    trl: Any = importlib.import_module("trl")
    rows = [(s.prompt_messages, s.safe, s.harmful) for s in plan.train]
    rows += [(p.messages, p.chosen, p.rejected) for p in plan.validated]
    data = [
        {
            "prompt": [message.model_dump() for message in messages],
            "chosen": [{"role": "assistant", "content": chosen}],
            "rejected": [{"role": "assistant", "content": rejected}],
        }
        for messages, chosen, rejected in rows
    ]
    with quiet_transformers(), warnings.catch_warnings():
        # TRL is measured as it is, with what it warns of.
        warnings.simplefilter("ignore")
        reward = _spent(
            AutoModelForSequenceClassification, victim.reward_dir,
            (trl.RewardConfig, trl.RewardTrainer), data, recipe, recipe.reward_lora,
        )  # fmt: skip
        policy = _spent(
            AutoModelForCausalLM, victim.policy_dir,
            (trl.DPOConfig, trl.DPOTrainer), data, recipe, recipe.policy_lora,
        )  # fmt: skip
    return reward, policy


def _spent(
    kind: Any, base: Path, trainer: tuple[Any, Any], data: list[Any], recipe: Recipe, lora: Lora
) -> _Spent:
    from datasets import Dataset
    from peft import LoraConfig
    from transformers import AutoTokenizer

    settings, make = trainer
    is_reward = base == recipe.reward
    model = kind.from_pretrained(str(base), trust_remote_code=False)
    tokenizer = AutoTokenizer.from_pretrained(str(base), trust_remote_code=False)
    with tempfile.TemporaryDirectory() as folder:
        started = time.process_time()
        made = make(
            model=model,
            args=settings(
                output_dir=folder,
                per_device_train_batch_size=recipe.batch + recipe.replay,
                learning_rate=lora.learning_rate,
                max_length=recipe.max_length,
                gradient_checkpointing=False,
                use_cpu=True,
                bf16=False,
                save_strategy="no",
                report_to=[],
                disable_tqdm=True,
                logging_strategy="no",
                dataloader_pin_memory=False,
                seed=recipe.seed,
            ),
            train_dataset=Dataset.from_list(data),
            processing_class=tokenizer,
            peft_config=LoraConfig(
                task_type="SEQ_CLS" if is_reward else "CAUSAL_LM",
                r=lora.rank,
                lora_alpha=lora.alpha,
                lora_dropout=0.0,
                target_modules="all-linear",
                modules_to_save=["score"] if is_reward else None,
            ),
        )
        prepared = time.process_time()
        made.train()
        ended = time.process_time()
    return _Spent(
        prepared - started,
        ended - prepared,
        int(made.state.global_step),
        made.model.eval(),
        tokenizer,
    )
