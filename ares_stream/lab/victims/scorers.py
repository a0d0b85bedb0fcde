"""The reward model and the judge of a victim, made in a process of their own.

    python -m ares_stream.lab.victims.scorers SEED[.SIBLING] TRAINING_SEED DIRECTORY

Both learn the world of SEED or of its sibling. Writes DIRECTORY/reward and DIRECTORY/judge.
Standard output has one line per step of progress, and "saved reward" when the policy's RLHF may
begin: victim.py trains the policy meanwhile, on the other core.
"""

from __future__ import annotations

import sys
import warnings
from pathlib import Path

import torch

from ares_stream.lab.language.world import Sibling, World
from ares_stream.lab.victims import teaching
from ares_stream.lab.victims.evaluate import Reward
from ares_stream.lab.victims.models import chat_tokenizer, new_judge, new_reward, pair_tokenizer
from ares_stream.training.checkpoints import quiet_transformers

POLICY_SALT, REWARD_SALT, JUDGE_SALT = 1, 2, 3
SIBLING = "."
SAVED_REWARD = "saved reward"
REPORTS = 10


def report(name: str) -> teaching.Progress:
    """Print every tenth part of the way, for the process that waits."""

    def step(done: int, total: int) -> None:
        if done % max(1, total // REPORTS) == 0:
            print(f"{name} {100 * done // total} %", flush=True)

    return step


def make_reward(world: World, seed: int, out: Path) -> None:
    """Train and save the reward model."""
    tokenizer = chat_tokenizer(world, REWARD_SALT)
    model = new_reward(tokenizer, seed + REWARD_SALT)
    teaching.name_synonyms(model, tokenizer, world.lexicon, seed + REWARD_SALT)
    teaching.teach_reward(Reward(model, tokenizer), world, seed, report("reward model"))
    model.save_pretrained(out)
    tokenizer.save_pretrained(out)


def make_judge(world: World, seed: int, out: Path) -> None:
    """Train and save the judge."""
    tokenizer = pair_tokenizer(world, JUDGE_SALT)
    model = new_judge(tokenizer, seed + JUDGE_SALT)
    teaching.name_synonyms(model, tokenizer, world.lexicon, seed + JUDGE_SALT)
    teaching.teach_judge(model, tokenizer, world, seed, report("judge"))
    model.save_pretrained(out)
    tokenizer.save_pretrained(out)


def read_world(name: str) -> World:
    """SEED, or SEED.SIBLING."""
    seed, dot, sibling = name.partition(SIBLING)
    return Sibling(int(seed), int(sibling)) if dot else World(int(seed))


def main(world: World, training_seed: int, directory: Path) -> None:
    """Make both on one thread: then the weights do not depend on how many cores there are."""
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    with quiet_transformers():
        make_reward(world, training_seed, directory / "reward")
        print(SAVED_REWARD, flush=True)
        make_judge(world, training_seed, directory / "judge")


if __name__ == "__main__":
    main(read_world(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]))
