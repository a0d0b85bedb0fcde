"""What a repairer needs to repair a victim: replay, reference, recipe and plan policy."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Final

import numpy as np
from pydantic import BaseModel

from ares_stream.lab.victims.traffic import reference_interactions
from ares_stream.lab.victims.victim import Victim
from ares_stream.records.interaction import Message
from ares_stream.repair.files import write_whole
from ares_stream.repair.plan import ReplaySample, ValidatedPair
from ares_stream.repair.recipe import Lora, Recipe, Reinforce

_SEED: Final = 41
_RATE: Final = 2e-3
"""Learning rate of adapters on models of 0.26M parameters; real ones take a tenth."""


def write_inputs(victim: Victim, folder: Path, count: int = 600) -> dict[str, Any]:
    """Write the victim's replay and reference to `folder`; returns the repairer settings that
    name them: replay, reference, resample and plan. `count` rows of each kind of replay. Paths
    are absolute, for a settings file may lie in any folder."""
    folder = folder.absolute()
    world = victim.world
    rng = np.random.default_rng([victim.seed, _SEED])

    def answered(split: str, seed: int) -> Iterable[ReplaySample]:
        for prompt in world.prompts(split, count, seed, harmful=False):  # type: ignore[arg-type]
            yield ReplaySample(messages=_turns(prompt.text), response=world.helpful(prompt, rng))

    pairs = [
        ValidatedPair(messages=_turns(pair.prompt.text), chosen=pair.chosen, rejected=pair.rejected)
        for pair in world.preferences("train", count, _SEED)
    ]
    replay = folder / "replay"
    _lines(replay / "benign.jsonl", answered("train", _SEED))
    # Harmless topics asked for by the tactics that jailbreaks use look harmful, and are not.
    _lines(replay / "over_refusal.jsonl", answered("dev", _SEED + 1))
    _lines(replay / "validated.jsonl", pairs)
    _lines(folder / "reference.jsonl", reference_interactions(victim))
    lexicon = world.lexicon
    refusals = [f"{word} {reason}" for word in lexicon.refusals for reason in lexicon.reasons]
    return {
        "replay": str(replay),
        "reference": str(folder / "reference.jsonl"),
        # Its world knows what a refusal is: nobody needs to be asked.
        "resample": 0,
        "plan": {"refusals": refusals, "max_share": 1.0, "max_per_source": 100_000},
    }


def recipe(victim: Victim, judge: Path, *, steps: int = 200, seed: int = 0) -> Recipe:
    """A recipe for models of this size; `judge` is the harm bundle that reads the figures.
    Paths are absolute, for a settings file may lie in any folder."""
    return Recipe(
        policy=victim.policy_dir.absolute(),
        reward=victim.reward_dir.absolute(),
        judge=judge.absolute(),
        seed=seed,
        steps=steps,
        max_length=64,
        reward_threshold=victim.reward_threshold,
        policy_lora=Lora(learning_rate=_RATE),
        reward_lora=Lora(learning_rate=_RATE),
        reinforce=Reinforce(steps=10, length=14, learning_rate=5e-4),
        refusal=refusal_pattern(victim),
        threads=1,
    )


def refusal_pattern(victim: Victim) -> str:
    """How a refusal begins in the victim's language; see `detection.refusals`."""
    words = "|".join(re.escape(word) for word in victim.world.lexicon.refusals)
    return rf"^(?:{words})\b"


def _turns(text: str) -> tuple[Message, ...]:
    return (Message(role="user", content=text),)


def _lines(file: Path, rows: Iterable[BaseModel]) -> None:
    write_whole(file, "".join(f"{row.model_dump_json()}\n" for row in rows).encode())
