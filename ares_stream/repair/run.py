"""The child process that trains one repair: `python -m ares_stream.repair.run RUN_DIR`.

Reads RUN_DIR/plan.json and RUN_DIR/recipe.json. Writes progress to stdout, one JSON object per
line ({"stage", "done", "total"}), and at the end RUN_DIR/policy_adapter, RUN_DIR/reward_adapter
(PEFT's format) and, last of all, RUN_DIR/figures.json. Started again after a kill it goes on
from RUN_DIR/checkpoints; started again after the end it does nothing.

Exit codes are those of the error tree: 0 trained, 1 cannot be trained, 2 wrong input.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
from pathlib import Path
from typing import Any

from ares_stream.errors import AresError, RepairError
from ares_stream.repair.recipe import read_recipe


def main(arguments: list[str]) -> int:
    """Train one run directory. Gives the exit code."""
    if len(arguments) != 1:
        sys.stderr.write("usage: python -m ares_stream.repair.run RUN_DIR\n")
        return 2
    try:
        run(Path(arguments[0]))
    except AresError as error:
        sys.stderr.write(f"repair: {error}\n")
        return error.exit_code
    return 0


def run(folder: Path) -> None:
    """Train, measure and save. Raises RepairError."""
    done = folder / "figures.json"
    if done.exists():
        return
    import torch

    from ares_stream.repair.figures import bundle_judge, measure, split_replay
    from ares_stream.repair.models import load_policy, load_reward
    from ares_stream.repair.plan import read_plan
    from ares_stream.repair.training import Trainer

    recipe = read_recipe(folder / "recipe.json")
    plan = read_plan(folder / "plan.json")
    if recipe.threads is not None:
        torch.set_num_threads(recipe.threads)
    report("load", 0, 1)
    judge = None if recipe.judge is None else bundle_judge(recipe.judge)
    training, held_out = split_replay(plan)
    seed, longest = recipe.seed, recipe.max_length
    policy = load_policy(recipe.policy, recipe.policy_lora, seed=seed, max_length=longest)
    reward = load_reward(recipe.reward, recipe.reward_lora, seed=seed, max_length=longest)
    trainer = Trainer(
        policy,
        reward,
        training,
        recipe,
        checkpoints=folder / "checkpoints",
        progress=report,
    )
    figures: dict[str, Any] = {}

    def note(when: str) -> None:
        if judge is None:
            return
        report(f"measure_{when}", 0, 1)
        found = measure(
            policy,
            reward,
            held_out,
            judge,
            trainer.scale,
            refusal=recipe.refusal,
            length=recipe.reinforce.length,
        )
        figures[when] = {name: value.model_dump() for name, value in found.overall.items()}
        figures.setdefault("slices", {})[when] = {
            place: {name: value.model_dump() for name, value in row.items()}
            for place, row in found.slices.items()
        }

    note("before")
    trainer.train()
    note("after")
    try:
        for name, side in (("policy", policy), ("reward", reward)):
            partial = folder / f"{name}_adapter.partial"
            shutil.rmtree(partial, ignore_errors=True)
            side.save(partial)
            shutil.rmtree(folder / f"{name}_adapter", ignore_errors=True)
            os.replace(partial, folder / f"{name}_adapter")
        partial = folder / "figures.json.partial"
        partial.write_text(json.dumps(figures, indent=1, sort_keys=True))
        os.replace(partial, done)
    except OSError as error:
        raise RepairError(f"{folder}: cannot be written: {error.strerror}") from None
    report("done", 1, 1)


def report(stage: str, done: int, total: int) -> None:
    """One line of progress on stdout."""
    sys.stdout.write(json.dumps({"stage": stage, "done": done, "total": total}) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
