"""The child process that trains one repair: `python -m ares_stream.repair.run RUN_DIR`.

Under `torchrun --nproc_per_node N` it is N processes, which share each step's batch and average
their gradients; only the first one writes files and progress.

Reads the plan and the recipe of a run directory (see rundirectory.py for its layout). Writes
progress to stdout, one JSON object per line ({"stage", "done", "total"}), and at the end both
adapters (PEFT's format) and, last of all, the figures. Started again after a kill it goes on from
its checkpoints; started again after the end it does nothing.

Exit codes are those of the error tree: 0 trained, 1 cannot be trained, 2 wrong input.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from ares_stream.errors import AresError, RepairError
from ares_stream.processes.parent import die_with_parent
from ares_stream.records.base import Interval
from ares_stream.repair.rundirectory import Figures, RunDirectory, Side, replaced

if TYPE_CHECKING:
    from ares_stream.repair.models import Adapted


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
        run(RunDirectory(Path(arguments[0])))
    except AresError as error:
        sys.stderr.write(f"repair: {error}\n")
        return error.exit_code
    return 0


def run(directory: RunDirectory) -> None:
    """Train, measure and save. Raises RepairError."""
    if directory.is_trained:
        return
    import torch
    from accelerate import PartialState
    from safetensors import SafetensorError

    from ares_stream.repair.figures import bundle_judge, measure, split_replay
    from ares_stream.repair.models import load_pair
    from ares_stream.repair.training import Trainer

    recipe, plan = directory.recipe.read(), directory.plan.read()
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
        checkpoints=directory.checkpoints,
        progress=tell,
    )
    overall: dict[str, dict[str, Interval]] = {}
    slices: dict[str, dict[str, dict[str, Interval]]] = {}

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
        overall[when], slices[when] = found.overall, found.slices

    note("before")
    try:
        trainer.train()
    except (OSError, SafetensorError) as error:
        raise RepairError(f"{directory.checkpoints}: cannot be written: {error}") from None
    note("after")
    if state.is_main_process:
        _save(directory, {"policy": policy, "reward": reward})
        measured = Figures(
            before=overall.get("before"), after=overall.get("after"), slices=slices or None
        )
        directory.figures.write(measured)
    state.destroy_process_group()
    tell("done", 1, 1)


def _save(directory: RunDirectory, sides: Mapping[Side, Adapted]) -> None:
    """Each adapter appears whole."""
    from safetensors import SafetensorError

    try:
        for name, side in sides.items():
            with replaced(directory.trained_adapter(name)) as staging:
                side.save(staging)
    except (OSError, SafetensorError) as error:
        raise RepairError(f"{directory.path}: cannot be written: {error}") from None


def report(stage: str, done: int, total: int) -> None:
    """One line of progress on stdout."""
    sys.stdout.write(json.dumps({"stage": stage, "done": done, "total": total}) + "\n")
    sys.stdout.flush()


def _silent(stage: str, done: int, total: int) -> None:
    """Of the same step one process tells."""


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
