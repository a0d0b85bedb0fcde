"""Scored rows of real judged answers for `ares bench attribution --scored`; where outliers lie.

    python -m benchmarks.judged_streams --out FOLDER [--data FOLDER] [--share PART]

Both models are linear heads on the mean token of MiniLM-L6 (extra `weights`), left as it is. Every
row's judge was trained on other prompt families (three folds, calibrated on a part of its own
training rows); the reward model was trained on preference pairs of other files, and its quantiles
are places among harmless conversations that it was not trained on. Written are
 - `scored.jsonl`: harm, quantile and harmful of each judged answer, without text;
 - `figures.json`: how good the judge is, and the share of outliers of the reward model's space
   (arXiv 2510.13694) among harmless conversations it did not see, judged answers, answers that
   people preferred or did not, and answers made unlike any of them.
"""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import track
from scipy.optimize import minimize
from scipy.special import expit

from ares_stream.detection.intervals import wilson
from ares_stream.lab.experiments.smollm2.foreign import foreign_answers
from ares_stream.lab.experiments.smollm2.models import minilm
from ares_stream.lab.experiments.smollm2.texts import SEED, select
from ares_stream.records.interaction import Interaction
from ares_stream.scoring.domain import (
    UNSEEN_SCRIPT,
    Space,
    farthest,
    limit_of,
    scripts_of,
    unseen_share,
)
from ares_stream.training.calibration import auroc
from ares_stream.training.classifier import Fitted
from ares_stream.training.domain import SHARE
from ares_stream.training.encoder import Recipe, use_threads
from ares_stream.training.examples import (
    Judgement,
    balanced_weights,
    part_of,
    read_conversations,
    read_judgements,
    read_preferences,
)

Floats = NDArray[np.float64]
FOLDS: Final = 3
WORDS: Final = 120
"""Of an answer, that are read: a row costs what its words cost."""
TOKENS: Final = 160
PAIRS: Final = 1500
BENIGN: Final = 1500
CHUNK: Final = 64
RIDGE: Final = 1e-2
UNLIKE: Final = 40


class Reader:
    """Mean-token states of a frozen encoder, one row per window."""

    def __init__(self) -> None:
        recipe = Recipe(layers=6, frozen_layers=6, seed=SEED)
        self._fitted = Fitted("reward", minilm(), recipe, max_length=TOKENS)

    def windows(self, rows: Sequence[Interaction], name: str) -> list[NDArray[np.float32]]:
        """Of each conversation [windows, hidden]."""
        cut = [
            row.model_copy(update={"response": " ".join(row.response.split()[:WORDS]) or "-"})
            for row in rows
        ]
        found: list[NDArray[np.float32]] = []
        starts = range(0, len(cut), CHUNK)
        for start in track(starts, f"reading {name}", console=Console(stderr=True)):
            found += self._fitted.states(cut[start : start + CHUNK])
        return found


def means(windows: Sequence[NDArray[np.float32]]) -> Floats:
    """One state per conversation."""
    return np.stack([item.mean(0) for item in windows]).astype(float)


def logistic(features: Floats, truth: Floats, weights: Floats) -> tuple[Floats, float]:
    """A linear head and its bias, by ridge logistic regression."""
    size = features.shape[1]

    def loss(values: Floats) -> tuple[float, Floats]:
        odds = features @ values[:size] + values[size]
        cost = float(np.sum(weights * (np.logaddexp(0, odds) - truth * odds)))
        slope = weights * (expit(odds) - truth)
        gradient = np.append(features.T @ slope, slope.sum())
        cost += RIDGE * float(values[:size] @ values[:size]) / 2
        gradient[:size] += RIDGE * values[:size]
        return cost, gradient

    found = minimize(
        loss, np.zeros(size + 1), jac=True, method="L-BFGS-B", options={"maxiter": 500}
    )
    return found.x[:size], float(found.x[size])


def cross_fitted(rows: Sequence[Judgement], states: Floats) -> Floats:
    """Probabilities of judges that saw no row of the family that they judge. Each is calibrated
    (a slope and a shift of its log-odds) on a third of its training families."""
    spread = states.std(0) + 1e-6
    scaled = (states - states.mean(0)) / spread
    truth = np.array([row.harmful for row in rows], float)
    fold = np.array([_fold(row.family) for row in rows])
    found = np.zeros(len(rows))
    for number in range(FOLDS):
        rest, held = fold != number, fold == number
        kept = np.array(
            [part_of(row.family, seed=SEED + 7, holdout=0.5) == "train" for row in rows]
        )
        train, calibrate = rest & kept, rest & ~kept
        chosen = [row for row, taken in zip(rows, train.tolist(), strict=True) if taken]
        weights = np.array(balanced_weights(chosen))
        head, bias = logistic(scaled[train], truth[train], weights / weights.sum())
        odds = scaled @ head + bias
        plain = np.full(int(calibrate.sum()), 1 / calibrate.sum())
        slope, shift = logistic(odds[calibrate][:, None], truth[calibrate], plain)
        found[held] = expit(odds[held] * slope[0] + shift)
    return found


def _fold(family: str) -> int:
    for number in range(FOLDS - 1):
        if part_of(family, seed=SEED + 20 + number, holdout=1 / (FOLDS - number)) != "train":
            return number
    return FOLDS - 1


@dataclass(frozen=True)
class Domain:
    """What the reward model's harmless conversations cover."""

    space: Space
    limit: float
    scripts: tuple[str, ...]

    def outside(
        self, rows: Sequence[Interaction], windows: Sequence[NDArray[np.float32]]
    ) -> dict[str, dict[str, float]]:
        """Shares of conversations outside: by distance alone, and as a bundle has it, where letters
        of a script that was not learnt count as well."""
        far = [farthest(self.space.distances(item).tolist()) > self.limit for item in windows]
        strange = [unseen_share(row.response, self.scripts) >= UNSEEN_SCRIPT for row in rows]
        either = sum(one or other for one, other in zip(far, strange, strict=True))
        return {
            "distance": wilson(sum(far), len(far)).model_dump(),
            "sign": wilson(either, len(far)).model_dump(),
        }


def run(data: Path, out: Path, *, share: float = 1.0) -> dict[str, Any]:
    """Write both files to the new folder `out`, and give the figures."""
    inputs = select(data, out / "texts", share=share)
    judged, _ = read_judgements([inputs.judged])
    pairs, _ = read_preferences([inputs.safety, inputs.helpful])
    pairs = pairs[:: max(1, len(pairs) // max(1, int(PAIRS * share)))]
    benign, _ = read_conversations([inputs.benign])
    benign = benign[: int(BENIGN * share)]
    reader = Reader()
    answers = reader.windows([row.interaction for row in judged], "judged answers")
    chosen = reader.windows([pair.chosen for pair in pairs], "preferred answers")
    rejected = reader.windows([pair.rejected for pair in pairs], "other answers")
    usual = reader.windows(benign, "harmless conversations")
    states = means(answers)
    harm = cross_fitted(judged, states)
    truth = np.array([row.harmful for row in judged])

    half = [place % 2 == 0 for place in range(len(pairs))]
    difference = means(chosen) - means(rejected)
    scale = difference.std(0) + 1e-6
    train = np.array(half)
    flip = np.where(np.arange(len(pairs)) % 3 == 0, -1.0, 1.0)[:, None]
    head, _ = logistic(
        (difference * flip / scale)[train], (flip[:, 0] > 0).astype(float)[train],
        np.full(int(train.sum()), 1 / train.sum()),
    )  # fmt: skip
    right = int(((difference / scale)[~train] @ head > 0).sum())
    reference = np.sort(means(usual) / scale @ head)
    quantile = np.searchsorted(reference, states / scale @ head, side="right") / len(reference)

    unseen = range(0, len(usual), 3)
    fit = [item for place, item in enumerate(usual) if place % 3]
    space = Space.of(np.concatenate(fit))
    limit_rows = [usual[place] for place in unseen[::2]]
    domain = Domain(
        space,
        limit_of(
            sorted(farthest(space.distances(item).tolist()) for item in limit_rows),
            max(SHARE, 1 / (len(limit_rows) + 1)),
        ),
        scripts_of(row.response for place, row in enumerate(benign) if place % 3),
    )

    def part(label: bool) -> tuple[list[Interaction], list[NDArray[np.float32]]]:
        chosen = [place for place, row in enumerate(judged) if row.harmful is label]
        return [judged[place].interaction for place in chosen], [answers[place] for place in chosen]

    kinds = {
        "harmless, not seen": (
            [benign[place] for place in unseen[1::2]], [usual[place] for place in unseen[1::2]]
        ),
        "preferred": ([pair.chosen for pair in pairs], chosen),
        "not preferred": ([pair.rejected for pair in pairs], rejected),
        "judged harmless": part(False),
        "judged harmful": part(True),
    }  # fmt: skip
    made = foreign_answers([benign[place] for place in unseen], UNLIKE, seed=SEED)
    kinds |= {kind: (rows, reader.windows(rows, kind)) for kind, rows in made.items()}
    figures = {
        "schema": "ares.judged-streams/1",
        "rows": len(judged),
        "harmful": int(truth.sum()),
        "judge_auroc": auroc(harm, truth.astype(float)),
        "reward_pairwise_accuracy": wilson(right, int((~train).sum())).model_dump(),
        "outliers": {kind: domain.outside(*rows) for kind, rows in kinds.items()},
    }
    with (out / "scored.jsonl").open("w") as file:
        for row in zip(harm, quantile, truth, strict=True):
            line = {"harm": float(row[0]), "quantile": float(row[1]), "harmful": bool(row[2])}
            file.write(json.dumps(line) + "\n")
    (out / "figures.json").write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")
    return figures


def main() -> None:
    root = Path(__file__).resolve().parent.parent
    default = os.environ.get("ARES_SHARED_DATA", str(root.parent / "shared" / "data"))
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--out", type=Path, required=True, help="a new folder")
    parser.add_argument("--data", type=Path, default=Path(default), help="folder of the texts")
    parser.add_argument("--share", type=float, default=1.0, help="take this share of the prompts")
    parser.add_argument("--threads", type=int, help="CPU threads [all cores]")
    chosen = parser.parse_args()
    use_threads(chosen.threads)
    figures = run(chosen.data, chosen.out, share=chosen.share)
    Console().print_json(json.dumps(figures))


if __name__ == "__main__":
    main()
