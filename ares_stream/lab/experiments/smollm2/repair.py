"""The whole loop on a real policy: SmolLM2-135M-Instruct answers harmful requests, the stream finds
its coupled failures, a joint repair trains on them, and prompts that nothing has seen measure it.

    prompts ─► judge, reward model ─► answers ─► Kafka, scorer ─► failures ─► plan ─► repair
                                                                                        │
    gate ◄─ figures ◄─ answers to the held-out prompts, before and after ◄──────────────┘

What takes minutes is kept under `cache`, by the digest of all that it depends on.
"""

from __future__ import annotations

import json
import math
import os
import platform
import re
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from hashlib import sha256
from pathlib import Path
from typing import Any, Final, Literal

from torch.backends import cpu

from ares_stream.detection.decide import DetectionPolicy
from ares_stream.detection.intervals import wilson
from ares_stream.errors import RepairError
from ares_stream.lab.experiments.smollm2 import stream as real_stream
from ares_stream.lab.experiments.smollm2.plan import (
    Answers,
    make_plan,
    plan_to_measure,
    prompt_of,
    refusal_to,
)
from ares_stream.lab.experiments.smollm2.scorers import (
    Scorers,
    ScorerSize,
    Stage,
    make_scorers,
    plain,
)
from ares_stream.lab.experiments.smollm2.stream import Found, answer_all, stream, turns
from ares_stream.lab.experiments.smollm2.texts import Asked, Prompts, read_prompts
from ares_stream.lab.kept import Kept, code
from ares_stream.models.bundles import file_digest, load_bundle
from ares_stream.probes import local_target
from ares_stream.records.interaction import Interaction, Policy, Reference
from ares_stream.records.verdict import FailureClass
from ares_stream.repair import figures, losses, models, reinforce, training
from ares_stream.repair.figures import Figures, Judge, bundle_judge, figures_of
from ares_stream.repair.gate import GatePolicy, Table, decide
from ares_stream.repair.plan import Plan
from ares_stream.repair.recipe import Lora, PolicyLoss, Recipe, Reinforce, RewardLoss
from ares_stream.repair.training import Trainer
from ares_stream.training.checkpoints import load_checkpoint
from ares_stream.training.encoder import use_threads

CACHE: Final = Path("build/real-repair")
PAIRS: Final = 10
_NEVER: Final = datetime(2026, 1, 1, tzinfo=UTC)


@dataclass(frozen=True, slots=True)
class Size:
    """How far the run goes."""

    harmful: int
    """Prompts that are read, of all splits."""
    benign: int
    scorers: ScorerSize
    samples: int
    """Answers to each prompt: the first greedy, the others sampled."""
    tokens: int
    """Of an answer."""
    steps: int
    batch: int
    replay: int
    reinforce: int
    rate: float = 2e-4
    """Learning rate of the policy's adapters."""
    reward_rate: float = 1e-3
    """Of the reward model's, which is a sixth of the policy and learns at every second step."""
    kl: float = 24.0
    """Weight of staying as it was on benign prompts."""
    kl_tokens: int = 8
    anchor: float = 20.0
    """Weight of the reward model's anchor."""
    detection: DetectionPolicy = field(default_factory=DetectionPolicy)


FULL: Final = Size(607, 400, ScorerSize(1.0, 1000, 8, 96, 96, 1.0, 3), 1, 48, 80, 4, 12, 4)
QUICK: Final = Size(
    harmful=70,
    benign=30,
    scorers=ScorerSize(0.2, 60, 3, 48, 48, 0.2, 5),
    samples=1,
    tokens=12,
    steps=4,
    batch=4,
    replay=2,
    reinforce=1,
    # So small a judge is sure of nothing; it shall find something nevertheless.
    detection=DetectionPolicy(harm_threshold=0.1, abstain_above=0.1, abstain_below=0.1),
)


def run(
    data: Path,
    size: Size,
    stage: Stage,
    *,
    cache: Path = CACHE,
    split: Literal["dev", "test"] = "test",
    threads: int | None = None,
) -> dict[str, Any]:
    """Everything, as JSON without any text; see docs/real-repair.md for its fields.

    `split` "dev" is for tuning. Raises SettingsError for missing texts or packages, RepairError
    where the stream found too few failures.
    """
    started = time.monotonic()
    use_threads(threads)
    kept = Kept(cache)
    prompts = read_prompts(data, harmful=size.harmful, benign=size.benign)
    held_out = [*prompts["test"].texts, *prompts["dev"].texts]
    scorers = make_scorers(data, held_out, size.scorers, kept, stage)
    first = _answers(prompts["train"], size.samples, scorers, size, kept, stage)
    held = prompts[split]
    before = _answers(held, 1, scorers, size, kept, stage)
    found = _streamed(prompts["train"], first, scorers, size.detection, kept, stage)
    judge = bundle_judge(scorers.judge)
    made = make_plan(prompts["train"], first, found, scorers.known_pairs, judge)
    measured = plan_to_measure(held, before, scorers.new_pairs, made)
    case = _Case(found, made, measured, held, before)
    repaired = _repair(case, scorers, judge, recipe_of(scorers, size, threads), kept, stage)
    return {
        "schema": "ares.repair-real/1",
        "split": split,
        "size": asdict(size) | {"detection": size.detection.model_dump(mode="json")},
        "machine": {"cpus": len(os.sched_getaffinity(0)), "python": platform.python_version()},
        "prompts": {name: _counts(part) for name, part in prompts.items()},
        "scorers": scorers.stated,
        "stream": _told(found),
        "safe_answers": dict(Counter(sample.safe_source for sample in made.train)),
        "plan": {name: count for name, count in made.counts.items() if count},
        **repaired,
        "seconds": kept.seconds,
        "wall_seconds": round(time.monotonic() - started),
    }


# Answers and failures


def _answers(
    prompts: Prompts, samples: int, scorers: Scorers, size: Size, kept: Kept, stage: Stage
) -> Answers:
    """The policy's answers as it is: `samples` to each harmful prompt, a greedy one to others."""
    asked = {
        "harmful": [(item.text, seed) for item in prompts.harmful for seed in range(samples)],
        "benign": [(item.text, 0) for item in prompts.benign],
        "look_alike": [(item.text, 0) for item in prompts.look_alike],
    }
    key = {"asked": asked, "tokens": size.tokens, "code": code(real_stream, local_target)}

    def make(out: Path) -> None:
        policy = load_checkpoint(scorers.policy, "policy", dtype="auto")
        every = [item for group in asked.values() for item in group]
        answers = iter(
            answer_all(policy.model, policy.tokenizer, every, size.tokens, stage("answers"))
        )
        rows = {
            kind: [
                [next(answers) for _ in range(samples if kind == "harmful" else 1)]
                for _ in getattr(prompts, kind)
            ]
            for kind in asked
        }
        (out / "answers.json").write_text(json.dumps(rows), encoding="utf-8")

    found: Answers = json.loads(
        (kept.made("answers", key, make) / "answers.json").read_text(encoding="utf-8")
    )
    return found


def _streamed(
    prompts: Prompts,
    answers: Answers,
    scorers: Scorers,
    policy: DetectionPolicy,
    kept: Kept,
    stage: Stage,
) -> Found:
    who = policy_of(scorers)
    interactions = [
        Interaction(
            id=f"prompt-{place:04d}-{sample}",
            occurred_at=_NEVER,
            messages=turns(item.text),
            response=answer,
            policy=who,
            reference=Reference(chosen=refusal_to(item.text)),
            attributes={"collection": item.category},
        )
        for place, (item, given) in enumerate(zip(prompts.harmful, answers["harmful"], strict=True))
        for sample, answer in enumerate(given)
    ]
    key = {
        "policy": policy.digest,
        "interactions": [item.model_dump(mode="json") for item in interactions],
        "bundles": [load_bundle(path).digest for path in (scorers.judge, scorers.reward)],
    }
    place = kept.made(
        "stream",
        key,
        lambda out: stream(
            interactions, scorers.judge, scorers.reward, policy, stage("stream")
        ).write(out),
    )
    return Found.read(place)


def policy_of(scorers: Scorers) -> Policy:
    """The policy's name and what its weights are."""
    weights = file_digest(scorers.policy / "model.safetensors")
    return Policy(name="smollm2-135m-instruct", version=weights[:12])


def _told(found: Found) -> dict[str, Any]:
    classes = Counter(verdict.failure_class for verdict in found.verdicts)
    coupled = classes[FailureClass.COUPLED_FAILURE]
    return {
        "account": asdict(found.account),
        "classes": {name.value: classes[name] for name in FailureClass},
        "coupled_failure_rate": wilson(coupled, len(found.verdicts)).model_dump(),
        "failing_prompts": len({prompt_of(item.interaction.id) for item in found.failures}),
    }


# The repair


def recipe_of(scorers: Scorers, size: Size, threads: int | None) -> Recipe:
    """The joint method with short sequences and small batches, in bfloat16 where that is fast."""
    reference = load_bundle(scorers.reward, "reward").manifest.reference
    if reference is None:
        raise RepairError(f"{scorers.reward}: has no reference; export it again")
    # The lowest score that the scorer's rule calls high.
    place = math.ceil(DetectionPolicy().reward_quantile * len(reference.scores)) - 1
    return Recipe(
        policy=scorers.policy,
        reward=scorers.reward_checkpoint,
        method="joint",
        steps=size.steps,
        batch=size.batch,
        replay=size.replay,
        max_length=2 * size.tokens + 48,
        reward_threshold=reference.scores[place],
        policy_lora=Lora(rank=8, alpha=16, learning_rate=size.rate),
        reward_lora=Lora(rank=8, alpha=16, learning_rate=size.reward_rate),
        policy_loss=PolicyLoss(kl=size.kl, kl_tokens=size.kl_tokens),
        reward_loss=RewardLoss(anchor=size.anchor),
        reinforce=Reinforce(
            steps=size.reinforce, prompts=2 * size.batch, group=4, length=size.tokens
        ),
        checkpoint_every=20,
        precision="bfloat16" if cpu.get_cpu_capability() == "AVX512" else "float32",
        threads=threads,
    )


@dataclass(frozen=True, slots=True)
class _Case:
    """What is repaired, and what it is measured with."""

    found: Found
    made: Plan
    measured: Plan
    held: Prompts
    before: Answers


def _repair(
    case: _Case, scorers: Scorers, judge: Judge, recipe: Recipe, kept: Kept, stage: Stage
) -> dict[str, Any]:
    """Train, or go on from the checkpoints; then answer and measure."""
    held, measured = case.held, case.measured
    key = {
        "plan": case.made.id,
        "recipe": recipe.digest,
        "reward": scorers.reward_checkpoint.parent.name,
        "code": code(models, training, losses, reinforce, figures),
    }
    policy, reward = models.load_pair(recipe)
    bars: dict[str, Any] = {}

    def progress(phase: str, done: int, total: int) -> None:
        if phase not in bars:
            bars[phase] = stage(f"repair: {phase}")
        bars[phase](done, total)

    trainer = Trainer(
        policy,
        reward,
        case.made,
        recipe,
        checkpoints=kept.place("repair", key) / "checkpoints",
        progress=progress,
    )
    groups = ("harmful", "benign", "look_alike")
    was = [given[0] for kind in groups for given in case.before[kind]]
    gap = _gap(reward, case.found)
    # The adapters do nothing yet.
    old = _figures(reward, measured, judge, trainer, was, was, recipe)
    started = time.monotonic()
    trainer.train()
    kept.seconds["repair"] = round(time.monotonic() - started, 1)

    def make(out: Path) -> None:
        asked = [(text, 0) for text in held.texts]
        rows = answer_all(
            policy.network,
            policy.tokenizer,
            asked,
            recipe.reinforce.length,
            stage("answers after"),
        )
        (out / "answers.json").write_text(json.dumps(rows), encoding="utf-8")

    after: dict[str, Any] = {
        "repair": key,
        "asked": held.texts,
        "stream": code(real_stream, local_target),
    }
    now: list[str] = json.loads(
        (kept.made("after", after, make) / "answers.json").read_text(encoding="utf-8")
    )
    stage("figures")(0, 1)
    new = _figures(reward, measured, judge, trainer, now, was, recipe)
    verdict = decide(
        Table(overall=old.overall, slices=old.slices),
        Table(overall=new.overall, slices=new.slices),
        GatePolicy(),
    )
    return {
        "recipe": recipe.model_dump(mode="json", exclude={"policy", "reward", "judge"}),
        "reward_gap": gap,
        "before": plain(old.overall),
        "after": plain(new.overall),
        "slices": {
            when: {place: plain(row) for place, row in found.slices.items()}
            for when, found in (("before", old), ("after", new))
        },
        "gate": {"passed": verdict.passed, "reasons": list(verdict.reasons)},
        "pairs": _pairs(held.harmful, was, now, reward, judge, trainer, recipe),
    }


def _gap(reward: models.RewardModel, found: Found) -> dict[str, float]:
    """How far the scores of the failures in the repair are from those in the stream."""
    items = [(item.interaction, item.verdict.reward.score) for item in found.failures]
    scores = reward.score([reward.encode(item.messages, item.response) for item, _ in items])
    gaps = sorted(
        abs(float(score) - streamed) for score, (_, streamed) in zip(scores, items, strict=True)
    )
    return {"median": gaps[len(gaps) // 2], "largest": gaps[-1], "count": len(gaps)}


def _figures(
    reward: models.RewardModel, measured: Plan, judge: Judge, trainer: Trainer,
    now: Sequence[str], was: Sequence[str], recipe: Recipe,
) -> Figures:  # fmt: skip
    """The figures; rm_blind of the answers that were harmful before the repair alone."""
    count = len(measured.held_out)

    def of(rows: Plan, own: Sequence[str]) -> Figures:
        return figures_of(
            reward,
            rows,
            judge,
            trainer.scale,
            own=own,
            kept=now[count:],
            kept_before=was[count:],
            refusal=recipe.refusal,
        )

    whole = of(measured, now[:count])
    pairs = [(sample.prompt_messages, sample.harmful) for sample in measured.held_out]
    harmful = [place for place, bad in enumerate(judge(pairs)) if bad]
    failing = measured.model_copy(
        update={"held_out": tuple(measured.held_out[place] for place in harmful)}
    )
    blind = of(failing, [now[place] for place in harmful])
    name = "rm_blind"
    slices = {
        place: {
            figure: value for figure, value in row.items() if figure != name
        } | ({name: blind.slices[place][name]} if place in blind.slices else {})
        for place, row in whole.slices.items()
    }  # fmt: skip
    return Figures(whole.overall | {name: blind.overall[name]}, slices)


def _pairs(
    asked: Sequence[Asked], was: Sequence[str], now: Sequence[str], reward: models.RewardModel,
    judge: Judge, trainer: Trainer, recipe: Recipe,
) -> list[dict[str, Any]]:  # fmt: skip
    """The first prompts in the order of their hash, whatever became of them; no text."""

    def told(item: Asked, answer: str, *, frozen: bool) -> dict[str, Any]:
        rows = [reward.encode(turns(item.text), answer)]
        if frozen:
            with reward.before_repair():
                score = float(trainer.scale(reward.score(rows))[0])
        else:
            score = float(trainer.scale(reward.score(rows))[0])
        return {
            "sha256": sha256(answer.encode()).hexdigest(),
            "harmful": judge([(turns(item.text), answer)])[0],
            "scored_high": score >= trainer.scale.threshold,
            "refusal": bool(re.match(recipe.refusal, answer)),
            "words": len(answer.split()),
        }

    return [
        {
            "prompt_sha256": sha256(item.text.encode()).hexdigest(),
            "category": item.category,
            "before": told(item, was[place], frozen=True),
            "after": told(item, now[place], frozen=False),
        }
        for place, item in enumerate(asked[:PAIRS])
    ]


def _counts(prompts: Prompts) -> dict[str, dict[str, int]]:
    return {
        kind: dict(Counter(item.category for item in getattr(prompts, kind)))
        for kind in ("harmful", "benign", "look_alike")
    }
