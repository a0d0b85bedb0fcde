"""A judge and a reward model for SmolLM2's answers, from the real texts, as bundles that are kept.

The judge is a linear head on the lowest layers of SmolLM2 itself, left as they are: it shares
its base with the policy that it judges, not with the reward model. The reward model is MiniLM,
fine-tuned on what people found helpful. Neither sees a prompt that is held out.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

from ares_stream.lab.experiments.smollm2 import texts as real_texts
from ares_stream.lab.experiments.smollm2.models import minilm, smollm2
from ares_stream.lab.experiments.smollm2.texts import SEED, Inputs, select
from ares_stream.lab.kept import Kept, code
from ares_stream.models.bundles import file_digest
from ares_stream.records.base import Interval
from ares_stream.scoring import tokenising
from ares_stream.training import architecture, classifier, encoder, examples, export
from ares_stream.training.classifier import Fitted, Report, train_harm, train_reward
from ares_stream.training.encoder import Recipe
from ares_stream.training.examples import (
    Preference,
    by_part,
    read_conversations,
    read_judgements,
    read_preferences,
)

Stage = Callable[[str], Callable[[int, int], None]]
"""Called with a stage's name; gives where its steps are counted."""
HOLDOUT: Final = 0.3
_REFERENCE: Final = 500
_CODE: Final = (
    architecture, classifier, encoder, examples, export, tokenising, real_texts,
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class ScorerSize:
    """How much is read, and how far the models go."""

    share: float
    """Of the prompt families of the training rows."""
    benign: int
    judge_layers: int
    judge_tokens: int
    reward_tokens: int
    reward_epochs: float
    reward_frozen: int


@dataclass(frozen=True, slots=True)
class Scorers:
    """Policy, bundles and the reward model's checkpoint; `stated` is what the bundles say of
    themselves. Of the pairs, ordered by safety and by helpfulness, the families of `known_pairs`
    may be trained on, those of `new_pairs` never."""

    policy: Path
    judge: Path
    reward: Path
    reward_checkpoint: Path
    stated: dict[str, Any]
    known_pairs: tuple[Preference, ...]
    new_pairs: tuple[Preference, ...]


def make_scorers(
    data: Path, held_out: Sequence[str], size: ScorerSize, kept: Kept, stage: Stage
) -> Scorers:
    """Train both, or find them. Raises SettingsError for a missing file or package."""
    stage("models")(0, 1)
    policy = smollm2(kept.root)
    minilm()

    def rows(out: Path) -> None:
        chosen = select(data, out, share=size.share, benign=size.benign, held_out=held_out)
        (out / "counts.json").write_text(
            json.dumps({"unusable": chosen.unusable, "held_out": chosen.held_out}), encoding="utf-8"
        )

    stage("texts")(0, 1)
    files = {file.name: file_digest(file) for file in sorted(data.glob("*.jsonl.gz"))}
    key = {"files": files, "share": size.share, "benign": size.benign, "held_out": list(held_out)}
    key["code"] = code(real_texts)
    texts = kept.made("texts", key, rows)
    counts = json.loads((texts / "counts.json").read_text(encoding="utf-8"))
    names = ("judged", "benign", "safety", "helpful")
    judged, benign, safety, helpful = (texts / f"{name}.jsonl" for name in names)
    inputs = Inputs(judged, benign, safety, helpful, **counts)
    key = {"texts": texts.name, "size": asdict(size), "code": code(*_CODE)}
    judge = kept.made("judge", key, lambda out: _judge(policy, inputs, size, out, stage))
    reward = kept.made("reward", key, lambda out: _reward(inputs, size, out, stage))
    pairs, _ = read_preferences([inputs.safety, inputs.helpful])
    parts = by_part((pair.family for pair in pairs), seed=SEED, holdout=HOLDOUT)
    return Scorers(
        policy=policy,
        judge=judge / "bundle",
        reward=reward / "bundle",
        reward_checkpoint=reward / "checkpoint",
        stated={
            "left_out_rows": counts,
            "judge": json.loads((judge / "stated.json").read_text(encoding="utf-8")),
            "reward": json.loads((reward / "stated.json").read_text(encoding="utf-8")),
        },
        known_pairs=tuple(pairs[i] for i in parts["train"]),
        new_pairs=tuple(pairs[i] for i in parts["test"]),
    )


def _judge(base: Path, inputs: Inputs, size: ScorerSize, out: Path, stage: Stage) -> None:
    rows, files = read_judgements([inputs.judged, inputs.benign])
    recipe = Recipe(layers=size.judge_layers, frozen_layers=size.judge_layers, seed=SEED)
    report = train_harm(
        rows,
        files,
        Fitted("harm", base, recipe, max_length=size.judge_tokens),
        out / "bundle",
        name="judge",
        holdout=HOLDOUT,
        progress=lambda name: stage(f"judge: {name}"),
    )
    _state(report, out)


def _reward(inputs: Inputs, size: ScorerSize, out: Path, stage: Stage) -> None:
    pairs, files = read_preferences([inputs.helpful])
    benign, _ = read_conversations([inputs.benign])
    recipe = Recipe(
        epochs=size.reward_epochs, learning_rate=2e-4, frozen_layers=size.reward_frozen, seed=SEED
    )
    fitted = Fitted("reward", minilm(), recipe, max_length=size.reward_tokens)
    report = train_reward(
        pairs,
        files,
        fitted,
        out / "bundle",
        name="reward",
        reference=benign[:_REFERENCE],
        holdout=HOLDOUT,
        progress=lambda name: stage(f"reward: {name}"),
    )
    shutil.copytree(fitted.save(), out / "checkpoint")
    _state(report, out)


def _state(report: Report, out: Path) -> None:
    found = {"rows": report.rows, "metrics": plain(report.metrics)}
    (out / "stated.json").write_text(json.dumps(found), encoding="utf-8")


def plain(metrics: dict[str, Interval]) -> dict[str, dict[str, float]]:
    """As JSON: {value, low, high, count}."""
    return {name: item.model_dump() for name, item in metrics.items()}
