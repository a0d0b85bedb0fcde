"""The child process that trains one repair: `python -m ares_stream.repair.run RUN_DIR`.

Under `torchrun --nproc_per_node N` it is N processes, which share each step's batch and average
their gradients; only the first one writes files and progress.

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
from typing import TYPE_CHECKING, Any

from ares_stream.errors import AresError, RepairError
from ares_stream.processes.parent import die_with_parent
from ares_stream.repair.files import write_whole
from ares_stream.repair.plan import read_plan
from ares_stream.repair.recipe import read_recipe

if TYPE_CHECKING:
    from ares_stream.repair.models import PolicyModel, RewardModel


def main(arguments: list[str]) -> int:
    """Train one run directory. Gives the exit code."""
    if len(arguments) != 1:
        sys.stderr.write("usage: python -m ares_stream.repair.run RUN_DIR\n")
        return 2
    if "RANK" in os.environ:
        # torchrun gives each of its processes a session of its own, where a signal to the group
        # of their common parent does not reach them.
        die_with_parent()
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
    from accelerate import PartialState
    from safetensors import SafetensorError

    from ares_stream.repair.figures import bundle_judge, measure, split_replay
    from ares_stream.repair.models import load_pair
    from ares_stream.repair.training import Trainer

    recipe = read_recipe(folder / "recipe.json")
    plan = read_plan(folder / "plan.json")
    if recipe.threads is not None:
        torch.set_num_threads(recipe.threads)
    launched = int(os.environ.get("WORLD_SIZE", "1"))
    # Accelerate leaves each of several processes without a GPU on its own unless it is told.
    state = PartialState(cpu=launched > 1 and not torch.cuda.is_available())
    if state.num_processes != launched:
        raise RepairError(
            f"{launched} processes were launched and Accelerate runs {state.num_processes}; each "
            "would train alone: launch one"
        )
    tell = report if state.is_main_process else _silent
    tell("load", 0, 1)
    judge = None if recipe.judge is None else bundle_judge(recipe.judge)
    training, held_out = split_replay(plan)
    policy, reward = load_pair(recipe)
    trainer = Trainer(
        policy,
        reward,
        training,
        recipe,
        checkpoints=folder / "checkpoints",
        progress=tell,
    )
    figures: dict[str, Any] = {}

    def note(when: str) -> None:
        if judge is None:
            return
        tell(f"measure_{when}", 0, 1)
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
    try:
        trainer.train()
    except (OSError, SafetensorError) as error:
        raise RepairError(f"{folder / 'checkpoints'}: cannot be written: {error}") from None
    note("after")
    if state.is_main_process:
        _write(folder, policy, reward, figures)
    state.destroy_process_group()
    tell("done", 1, 1)


def _write(folder: Path, policy: PolicyModel, reward: RewardModel, figures: dict[str, Any]) -> None:
    """Each adapter appears whole, and the figures when both are there."""
    from safetensors import SafetensorError

    try:
        for name, side in (("policy", policy), ("reward", reward)):
            partial = folder / f"{name}_adapter.partial"
            shutil.rmtree(partial, ignore_errors=True)
            side.save(partial)
            shutil.rmtree(folder / f"{name}_adapter", ignore_errors=True)
            os.replace(partial, folder / f"{name}_adapter")
    except (OSError, SafetensorError) as error:
        raise RepairError(f"{folder}: cannot be written: {error}") from None
    write_whole(folder / "figures.json", json.dumps(figures, indent=1, sort_keys=True).encode())


def report(stage: str, done: int, total: int) -> None:
    """One line of progress on stdout."""
    sys.stdout.write(json.dumps({"stage": stage, "done": done, "total": total}) + "\n")
    sys.stdout.flush()


def _silent(stage: str, done: int, total: int) -> None:
    """Of the same step one process tells."""


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
