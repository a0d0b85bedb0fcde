"""What the joint repair costs beside TRL's RewardTrainer followed by its DPOTrainer.

The same victim, preference pairs, adapters, threads and number of pairs per update and of
updates for both. The joint side includes its reinforcement learning; each side includes its
own preparation of the data, and neither the loading of libraries.
"""

from __future__ import annotations

import importlib
import os
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any

from ares_stream.repair import models
from ares_stream.repair.plan import Plan
from ares_stream.repair.recipe import Recipe
from ares_stream.repair.training import Trainer
from ares_stream.testbed.repair_bench import RECIPE, gather
from ares_stream.testbed.victim import Victim, make_victim
from ares_stream.training.encoder import quiet_transformers


def run_cost(seed: int, *, cache: Path | None = None, recipe: Recipe = RECIPE) -> dict[str, Any]:
    """Seconds of each side and `joint_over_trl`. Needs the `bench` extra."""
    import torch

    importlib.import_module("trl")  # Before the clock starts.

    victim = make_victim(seed, cache)
    plan = gather(victim)
    recipe = recipe.model_copy(
        update={
            "method": "joint",
            "seed": seed,
            "policy": victim.policy_dir,
            "reward": victim.reward_dir,
            "reward_threshold": victim.reward_threshold,
        }
    )
    threads = torch.get_num_threads()
    torch.set_num_threads(recipe.threads or threads)
    try:
        joint = _joint(plan, recipe)
        reward, policy = _trl(victim, plan, recipe)
    finally:
        torch.set_num_threads(threads)
    return {
        "schema": "ares.repair-cost/1",
        "seed": seed,
        "updates": recipe.steps,
        "pairs_per_update": recipe.batch + recipe.replay,
        "pairs": len(plan.train) + len(plan.validated),
        "threads": recipe.threads,
        "cores": len(os.sched_getaffinity(0)),
        "joint_seconds": joint,
        "trl_reward_seconds": reward,
        "trl_dpo_seconds": policy,
        "joint_over_trl": joint / (reward + policy),
    }


def _joint(plan: Plan, recipe: Recipe) -> float:
    seed, longest = recipe.seed, recipe.max_length
    policy = models.load_policy(recipe.policy, recipe.policy_lora, seed=seed, max_length=longest)
    reward = models.load_reward(recipe.reward, recipe.reward_lora, seed=seed, max_length=longest)
    started = time.perf_counter()
    Trainer(policy, reward, plan, recipe).train()
    return time.perf_counter() - started


def _trl(victim: Victim, plan: Plan, recipe: Recipe) -> tuple[float, float]:
    """Seconds of RewardTrainer and of DPOTrainer, from data to the last update."""
    from datasets import Dataset
    from peft import LoraConfig
    from transformers import (
        AutoModelForCausalLM,
        AutoModelForSequenceClassification,
        AutoTokenizer,
    )

    # trl exports its classes lazily, which a type checker does not see.
    trl: Any = importlib.import_module("trl")
    rows = [(s.prompt_messages, s.safe, s.harmful) for s in plan.train]
    rows += [(p.messages, p.chosen, p.rejected) for p in plan.validated]
    spent: list[float] = []
    sides = (
        (
            AutoModelForSequenceClassification,
            victim.reward_dir,
            trl.RewardConfig,
            trl.RewardTrainer,
        ),
        (AutoModelForCausalLM, victim.policy_dir, trl.DPOConfig, trl.DPOTrainer),
    )
    with tempfile.TemporaryDirectory() as folder, quiet_transformers():
        for kind, directory, settings, trainer in sides:
            is_policy = kind is AutoModelForCausalLM
            lora = recipe.policy_lora if is_policy else recipe.reward_lora
            model = kind.from_pretrained(str(directory), trust_remote_code=False)
            tokenizer = AutoTokenizer.from_pretrained(str(directory), trust_remote_code=False)
            started = time.perf_counter()
            with warnings.catch_warnings():
                # TRL is measured as it is, with what it warns of.
                warnings.simplefilter("ignore")
                trainer(
                    model=model,
                    args=settings(
                        output_dir=folder,
                        max_steps=recipe.steps,
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
                    train_dataset=Dataset.from_list(
                        [
                            {
                                "prompt": [m.model_dump() for m in messages],
                                "chosen": [{"role": "assistant", "content": chosen}],
                                "rejected": [{"role": "assistant", "content": rejected}],
                            }
                            for messages, chosen, rejected in rows
                        ]
                    ),
                    processing_class=tokenizer,
                    peft_config=LoraConfig(
                        task_type="CAUSAL_LM" if is_policy else "SEQ_CLS",
                        r=lora.rank,
                        lora_alpha=lora.alpha,
                        lora_dropout=0.0,
                        target_modules="all-linear",
                        modules_to_save=None if is_policy else ["score"],
                    ),
                ).train()
            spent.append(time.perf_counter() - started)
    return spent[0], spent[1]
