"""A victim as production: its conversations, and its scorers as bundles."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Final

import numpy as np
import torch

from ares_stream.errors import InputError
from ares_stream.lab.language.oracle import JUDGE_ERROR, Answer, Oracle
from ares_stream.lab.language.world import Prompt
from ares_stream.lab.victims.evaluate import load_policy
from ares_stream.lab.victims.teaching import judged_answers, rated
from ares_stream.lab.victims.victim import Victim
from ares_stream.models.bundles import Bundle, Calibration, Kind, Lineage, load_bundle
from ares_stream.records.base import digest
from ares_stream.records.interaction import Interaction, Message, Policy, Reference
from ares_stream.training.calibration import auroc, expected_calibration_error, fit_platt
from ares_stream.training.checkpoints import load_checkpoint, quiet_transformers
from ares_stream.training.domain import DomainRows
from ares_stream.training.export import export_bundle

TEMPERATURE: Final = 0.7
REFERENCE_SHARE: Final = 0.3
"""Share of conversations for which known answers exist, as from an annotated sample."""
_BEGIN: Final = datetime(2026, 1, 1, tzinfo=UTC)
_MEAN_GAP: Final = 0.25
"""Seconds between two conversations, on average."""
_CALIBRATION_ROWS: Final = 2000
_DOMAIN_ROWS: Final = 1200
_MAX_LENGTH: Final = 64


def traffic(
    victim: Victim,
    count: int,
    seed: int,
    *,
    harmful_share: float = 0.35,
    policy: tuple[Path, str] | None = None,
) -> list[Interaction]:
    """`count` conversations with the policy's own sampled answers, in order of time.

    The prompts use forms and tactics that probing and repair may see. `harmful_share` of them
    are about harmful topics. Attributes hold topic, tactic, persona and goal ids. The same
    arguments give the same conversations, whatever policy answers: `policy` is a PEFT adapter
    and its version, for the same traffic after a repair.

    Raises InputError for a count or share out of range, RepairError where the policy cannot
    be loaded.
    """
    if count < 1:
        raise InputError("count: at least one conversation")
    if not 0.0 <= harmful_share <= 1.0:
        raise InputError("harmful_share: must lie between 0 and 1")
    world = victim.world
    prompts = _asked(victim, count, seed, harmful_share)
    rng = np.random.default_rng([world.seed, 15, seed])
    gaps = rng.exponential(_MEAN_GAP, count)
    known = rng.random(count) < REFERENCE_SHARE
    references = [
        _reference(victim, prompt, rng) if some else None
        for prompt, some in zip(prompts, known, strict=True)
    ]
    adapter, version = policy or (None, victim.version)
    with quiet_transformers():
        model = load_policy(victim.policy_dir, adapter)
    answers = model.answer(
        [prompt.text for prompt in prompts], seed=seed + 1, temperature=TEMPERATURE
    )
    who = Policy(name=f"testbed-policy-{victim.seed}", version=version)
    return [
        Interaction(
            id=f"testbed-{victim.seed}-{seed}-{place:06d}",
            occurred_at=_BEGIN + timedelta(seconds=float(at)),
            messages=(Message(role="user", content=prompt.text),),
            response=answer,
            policy=who,
            attributes=world.ids(prompt.composition),
            reference=reference,
        )
        for place, (prompt, answer, reference, at) in enumerate(
            zip(prompts, answers, references, np.cumsum(gaps), strict=True)
        )
    ]


def _asked(victim: Victim, count: int, seed: int, harmful_share: float) -> list[Prompt]:
    """Half from each split that a repair may see, shuffled."""
    harmful = round(count * harmful_share)
    prompts: list[Prompt] = []
    for about, amount in ((True, harmful), (False, count - harmful)):
        half = amount // 2
        prompts += victim.world.prompts("train", half, seed, harmful=about)
        prompts += victim.world.prompts("dev", amount - half, seed, harmful=about)
    order = np.random.default_rng([victim.seed, 16, seed]).permutation(count)
    return [prompts[int(place)] for place in order]


def _reference(victim: Victim, prompt: Prompt, rng: np.random.Generator) -> Reference:
    world = victim.world
    if not prompt.harmful_topic:
        return Reference(chosen=world.helpful(prompt, rng))
    return Reference(chosen=world.refusal(prompt, rng), rejected=world.helpful(prompt, rng))


def export_victim_bundles(
    victim: Victim, out: Path, progress: Callable[[str], None] | None = None
) -> tuple[Path, Path]:
    """The judge, calibrated, and the reward model with its benign reference, as bundle
    directories under `out`: (harm, reward).

    Named by the victim's version, so a bundle that is there already is verified and used.
    Raises BundleError, IntegrityError.
    """
    say = progress or (lambda _: None)

    def made(kind: Kind, make: Callable[[Path], Bundle]) -> Path:
        home = out / f"{kind}-{victim.seed}-{victim.version}"
        if home.exists():
            return load_bundle(home, kind).path
        say(f"exporting the {kind} bundle")
        with quiet_transformers():
            return make(home).path

    return (
        made("harm", lambda home: _export_judge(victim, home)),
        made("reward", lambda home: _export_reward(victim, home)),
    )


def _export_judge(victim: Victim, out: Path) -> Bundle:
    calibration, metrics = _calibrate(victim)
    return export_bundle(
        "harm",
        victim.judge_dir,
        out,
        name="testbed-judge",
        labels=("harmful",),
        max_length=_MAX_LENGTH,
        calibration=calibration,
        sample=reference_interactions(victim),
        lineage=_lineage(victim, "judge"),
        metrics=metrics,
    )


def _export_reward(victim: Victim, out: Path) -> Bundle:
    return export_bundle(
        "reward",
        victim.reward_dir,
        out,
        name="testbed-reward",
        max_length=_MAX_LENGTH,
        reference=reference_interactions(victim),
        domain=DomainRows.split(_reward_lessons(victim)),
        lineage=_lineage(victim, "reward"),
    )


def reference_interactions(victim: Victim) -> list[Interaction]:
    """The benign reference set as interactions, for the quantiles of a reward bundle."""
    return _interactions(victim, "reference", victim.reference)


def _reward_lessons(victim: Victim) -> list[Interaction]:
    """Conversations like those that the reward model learned from, three quarters of them about
    harmful topics: of the benign reference alone a third of the traffic would be outside."""
    world = victim.world
    rng = np.random.default_rng([world.seed, 18])
    prompts = world.lessons(
        _DOMAIN_ROWS, world.seed, world.reward_weak, harmful_share=0.75, weak_share=0.5
    )
    loved = [bool(world.reward_weak[prompt.composition]) for prompt in prompts]
    answers, _ = rated(world, prompts, loved, rng)
    rows = [(prompt.text, answer) for prompt, answer in zip(prompts, answers, strict=True)]
    return _interactions(victim, "lesson", rows)


def _interactions(victim: Victim, kind: str, rows: Sequence[tuple[str, str]]) -> list[Interaction]:
    who = Policy(name=f"testbed-{kind}", version="1")
    return [
        Interaction(
            id=f"testbed-{kind}-{victim.seed}-{place:04d}",
            occurred_at=_BEGIN,
            messages=(Message(role="user", content=prompt),),
            response=answer,
            policy=who,
        )
        for place, (prompt, answer) in enumerate(rows)
    ]


def _lineage(victim: Victim, which: str) -> Lineage:
    """Judge and reward model learn from other lessons, and begin as other models."""
    return Lineage(
        base=f"testbed/{which}-{victim.seed}", data=(digest([which, victim.seed, victim.version]),)
    )


@torch.inference_mode()
def _calibrate(victim: Victim) -> tuple[Calibration, dict[str, float]]:
    """Platt scaling on labels as people give them: JUDGE_ERROR of them are wrong."""
    oracle = Oracle(victim.world)
    prompts, answers = judged_answers(victim.world, 2 * _CALIBRATION_ROWS, 1)
    truth = np.array(
        [
            oracle.classify(prompt.composition, answer) is Answer.HARMFUL
            for prompt, answer in zip(prompts, answers, strict=True)
        ]
    )
    wrong = np.random.default_rng([victim.seed, 17]).random(len(truth)) < JUDGE_ERROR
    labels = (truth ^ wrong).astype(np.int64)
    judge = load_checkpoint(victim.judge_dir)
    encoded = judge.tokenizer(
        [prompt.text for prompt in prompts], answers, padding=True, return_tensors="pt"
    )
    logits = judge.model(**encoded).logits.numpy()
    margins = (logits[:, 1] - logits[:, 0]).astype(np.float64)
    fitted, held = slice(_CALIBRATION_ROWS), slice(_CALIBRATION_ROWS, None)
    platt = fit_platt(margins[fitted], labels[fitted])
    probabilities = platt(margins[held])
    metrics = {
        "auroc": auroc(margins[held], labels[held]),
        "expected_calibration_error": expected_calibration_error(probabilities, labels[held]),
    }
    return Calibration(slope=platt.slope, intercept=platt.intercept), metrics
