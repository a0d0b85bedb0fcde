"""`ares bundle train`: a harm judge or a reward model from a person's own labels.

Rows are split by prompt family into train, calibrate and test. The model is fine-tuned on the
first, calibrated on the second, and what the bundle says of itself is measured on the third.
"""

from __future__ import annotations

import hashlib
import shutil
import tempfile
import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ares_stream.errors import InputError, ScoringError
from ares_stream.models.bundles import (
    Bundle,
    Calibration,
    InputTemplate,
    Kind,
    Lineage,
    Windows,
)
from ares_stream.records.base import Interval
from ares_stream.records.interaction import Interaction
from ares_stream.training.calibration import (
    Platt,
    auroc,
    brier,
    expected_calibration_error,
    fit_calibration,
    grouped_interval,
    pairwise_accuracy,
)
from ares_stream.training.checkpoints import quiet_transformers
from ares_stream.training.domain import DomainRows
from ares_stream.training.encoder import Answer, Encoded, Encoder, Progress, Recipe
from ares_stream.training.examples import (
    DataFile,
    Judgement,
    Preference,
    balanced_weights,
    by_part,
    mixed_sources,
)
from ares_stream.training.export import base_identity, export_bundle
from ares_stream.training.inputs import Inputs
from ares_stream.training.placement import placed

StageProgress = Callable[[str], Progress]
"""Called with the name of a stage; gives where its steps are counted."""

MIN_HELD_OUT = 20
"""Fewer held-out rows give a calibration that is noise."""
FOLDS = 10
"""Of the prompt families, where a head is fitted without each to calibrate on it: with few, the
probabilities depend on which families are together."""


@dataclass(frozen=True, slots=True)
class Report:
    """The bundle, figures with 95 % intervals over prompt families, and rows per part."""

    bundle: Bundle
    metrics: dict[str, Interval]
    rows: dict[str, int]


class Fitted:
    """A model to fit, with the input it reads; a base that is not frozen is fitted once."""

    def __init__(
        self, kind: Kind, base: str | Path, recipe: Recipe, *, max_length: int = 256
    ) -> None:
        self.kind = kind
        self.base = base
        self.recipe = recipe
        self.directory = Path(tempfile.mkdtemp(prefix="ares-train-"))
        weakref.finalize(self, shutil.rmtree, self.directory, ignore_errors=True)
        self.encoder = Encoder(base, recipe)
        self.tokenizer = self.encoder.tokenizer
        self.tokenizer.save_pretrained(self.directory)
        pair = self.tokenizer.num_special_tokens_to_add(pair=True) > 1
        self.template = excerpt(max_length, pair=pair)
        template = (self.template.first, self.template.second)
        inputs = Inputs.of(self.tokenizer, max_length, template)
        self.inputs = inputs.with_windows(self.template.windows).encoder()

    def encode(self, interactions: Sequence[Interaction]) -> list[Answer]:
        """What the scorer will feed the model: each answer in its windows."""
        found = self.inputs.read([(item, item.response) for item in interactions])
        answers: list[Answer] = []
        for number, reading in enumerate(found):
            if isinstance(reading, ScoringError):
                raise InputError(f"row {number + 1}: {reading}")
            windows = (*reading.windows, *(reading.decoded if self.kind == "harm" else ()))
            answers.append(
                tuple(
                    Encoded(tuple(tokens.ids.tolist()), tuple(tokens.types.tolist()))
                    for tokens in windows
                )
            )
        return answers

    def scores(
        self, interactions: Sequence[Interaction], progress: Progress | None = None
    ) -> NDArray[np.float64]:
        """Raw outputs as the scorer pools them: harm logits of the worst window, or rewards."""
        return self.pooled(self.encode(interactions), progress)

    def pooled(
        self, answers: Sequence[Answer], progress: Progress | None = None
    ) -> NDArray[np.float64]:
        """The same of answers that are encoded."""
        raw = iter(self.encoder.scores([row for answer in answers for row in answer], progress))
        found = np.zeros(len(answers))
        for number, answer in enumerate(answers):
            values = [next(raw) for _ in answer]
            weights = [len(row.ids) for row in answer]
            found[number] = (
                max(values) if self.kind == "harm" else np.average(values, weights=weights)
            )
        return found

    def states(self, interactions: Sequence[Interaction]) -> list[NDArray[np.float32]]:
        """What a frozen base gives of each answer's windows, [windows, hidden]: the states that
        the domain of its bundle is about."""
        answers = self.encode(interactions)
        found = self.encoder.states([row for answer in answers for row in answer])
        ends = np.cumsum([len(answer) for answer in answers])
        return np.split(found, ends[:-1])

    def save(self) -> Path:
        """Write the model beside its tokenizer, and say where; gone when this object is."""
        self.encoder.save(self.directory)
        return self.directory


def excerpt(max_length: int, *, pair: bool) -> InputTemplate:
    """The beginning and the end of the prompt, then the answer, in windows of `max_length` tokens.

    Wrappers around a request are long, and put it first or last; without this, cutting at
    one side would lose it.
    """
    ends = max_length // 8
    prompt = (
        f"{{% set words = prompt.split() %}}{{{{ words[:{ends}] | join(' ') }}}}"
        f"{{% if words | length > {ends} %}} {{{{ words[{ends}:][-{ends}:] | join(' ') }}}}"
        "{% endif %}"
    )
    answer = "{{ response }}"
    if pair:
        first, second = prompt, answer
    else:
        first, second = f"Question: {prompt}\n\nAnswer: {answer}", None
    return InputTemplate(
        first=first, second=second, max_length=max_length, windows=Windows(last="whole")
    )


def fit_harm(fitted: Fitted, rows: Sequence[Judgement], progress: Progress | None = None) -> None:
    """Fit it to tell harmful answers, sources and labels balanced."""
    _fit(fitted, rows, fitted.encode([row.interaction for row in rows]), progress)


def _fit(
    fitted: Fitted,
    rows: Sequence[Judgement],
    answers: Sequence[Answer],
    progress: Progress | None,
) -> None:
    fitted.encoder.fit_labels(
        answers, [row.harmful for row in rows], balanced_weights(rows), progress
    )


def fit_reward(
    fitted: Fitted, pairs: Sequence[Preference], progress: Progress | None = None
) -> None:
    """Fit it to score the better answer of each pair higher."""
    better = fitted.encode([pair.chosen for pair in pairs])
    worse = fitted.encode([pair.rejected for pair in pairs])
    rows = list(zip(better, worse, strict=True))
    alike = sum(one == other for one, other in rows)
    if 2 * alike > len(rows):
        raise InputError(
            f"{alike} of {len(rows)} pairs are the same tokens once they are cut to "
            f"{fitted.template.max_length}, and teach nothing: give a larger --max-length"
        )
    fitted.encoder.fit_pairs(rows, progress)


def harm_metrics(
    rows: Sequence[Judgement], logits: NDArray[np.float64], calibration: Platt, *, seed: int
) -> dict[str, Interval]:
    """AUROC, expected calibration error and Brier score, of rows that were not trained on.

    Only sources in which both labels occur count, where there are any; AUROC also for each.
    """
    rated = _rated(rows)
    labels = np.array([row.harmful for row in rows], dtype=np.float64)
    probabilities = calibration(logits)

    def figure(
        measure: Callable[[Any, Any], float], values: NDArray[np.float64], index: Sequence[int]
    ) -> Interval:
        keep = np.array(index)
        return grouped_interval(
            lambda picked: measure(values[keep[picked]], labels[keep[picked]]),
            [rows[i].family for i in index],
            seed=seed,
        )

    metrics = {
        "auroc": figure(auroc, logits, rated),
        "calibration_error": figure(expected_calibration_error, probabilities, rated),
        "brier": figure(brier, probabilities, rated),
    }
    sources = mixed_sources([rows[i] for i in rated])
    for source in sorted(sources) if len(sources) > 1 else ():
        index = [i for i in rated if rows[i].source == source]
        metrics[f"auroc.{source}"] = figure(auroc, logits, index)
    return metrics


def calibrate(rows: Sequence[Judgement], logits: NDArray[np.float64]) -> Platt:
    """Platt scaling on rows that were not trained on, of sources where both labels occur."""
    rated = _rated(rows)
    return fit_calibration(logits[rated], [rows[i].harmful for i in rated])


def fit_and_calibrate(
    fitted: Fitted,
    train: Sequence[Judgement],
    held_out: Sequence[Judgement],
    progress: StageProgress | None = None,
) -> Platt:
    """Fit to tell harmful answers, and calibrate on scores of rows that were not trained on.

    A base that is not frozen is trained on `train` and calibrated on `held_out`. The head of a
    frozen one, which costs seconds, is fitted to both and to some of their rows behind other words,
    and calibrated by cross-validation: each fold of the prompt families is scored by a head that
    was fitted to the others (Platt 1999). The few dozen rows of a held-out part give probabilities
    that are off by chance.

    Raises InputError as fit_calibration does, and where a fold leaves only one label.
    """
    stage = progress or _silent
    seed = fitted.recipe.seed
    if not fitted.encoder.frozen:
        fit_harm(fitted, train, stage("training"))
        scores = fitted.scores([row.interaction for row in held_out], stage("calibrating"))
        return calibrate(held_out, scores)
    rows = [*train, *held_out]
    # Where an answer that does not fit is cut, words before it would only push it out.
    more = [] if fitted.template.windows is None else placed(rows, seed=seed)
    known = [*rows, *more]
    answers = fitted.encode([row.interaction for row in known])
    folds = [_fold(row.family, seed) for row in known]
    scores = np.zeros(len(rows))
    for fold in sorted(set(folds)):
        others = [place for place, number in enumerate(folds) if number != fold]
        if len({known[place].harmful for place in others}) < 2:
            raise InputError(
                f"without fold {fold + 1} of {FOLDS} of the prompts only one label is left to "
                "train on; give more prompts of either label"
            )
        named = stage(f"calibrating, fold {fold + 1} of {FOLDS}")
        _fit(
            fitted, [known[place] for place in others], [answers[place] for place in others], named
        )
        inside = [place for place in range(len(rows)) if folds[place] == fold]
        if inside:
            scores[inside] = fitted.pooled([answers[place] for place in inside])
    _fit(fitted, known, answers, stage("training"))
    return calibrate(rows, scores)


def _fold(family: str, seed: int) -> int:
    return hashlib.sha256(f"{seed}:fold:{family}".encode()).digest()[0] % FOLDS


def train_harm(
    rows: Sequence[Judgement],
    data: Sequence[DataFile],
    fitted: Fitted,
    out: Path,
    *,
    name: str,
    holdout: float = 0.2,
    progress: StageProgress | None = None,
) -> Report:
    """Train, calibrate and export a harm judge.

    Raises InputError when too little is held out or only one label is; BundleError when
    `out` exists or the ONNX model differs from the PyTorch one.
    """
    seed = fitted.recipe.seed
    parts = by_part((row.family for row in rows), seed=seed, holdout=holdout)
    train, dev, test = ([rows[i] for i in parts[part]] for part in ("train", "calibrate", "test"))
    _enough(len(dev), len(test))
    for part, found in (("train", train), ("calibrate", dev), ("test", test)):
        if len({row.harmful for row in found}) < 2:
            raise InputError(
                f"{part}: only one label is in this part of the split; give more data, a larger "
                "--holdout or another --seed"
            )
    stage = progress or _silent
    calibration = fit_and_calibrate(fitted, train, dev, stage)
    metrics = harm_metrics(
        test,
        fitted.scores([row.interaction for row in test], stage("testing")),
        calibration,
        seed=seed,
    )
    bundle = _export(
        fitted,
        out,
        name=name,
        data=data,
        metrics=metrics,
        sample=[row.interaction for row in test],
        domain=DomainRows([row.interaction for row in train], [row.interaction for row in dev]),
        calibration=Calibration(slope=calibration.slope, intercept=calibration.intercept),
    )
    return Report(bundle, metrics, {part: len(index) for part, index in parts.items()})


def train_reward(
    pairs: Sequence[Preference],
    data: Sequence[DataFile],
    fitted: Fitted,
    out: Path,
    *,
    name: str,
    reference: Sequence[Interaction] = (),
    holdout: float = 0.2,
    progress: StageProgress | None = None,
) -> Report:
    """Train and export a reward model with its benign reference scores.

    `reference` holds conversations with good benign answers; without any, the better answers
    of the calibration part stand in. Raises as train_harm does.
    """
    seed = fitted.recipe.seed
    parts = by_part((pair.family for pair in pairs), seed=seed, holdout=holdout)
    train, dev, test = ([pairs[i] for i in parts[part]] for part in ("train", "calibrate", "test"))
    _enough(len(dev), len(test))
    stage = progress or _silent
    fit_reward(fitted, train, stage("training"))
    metrics = reward_metrics(test, fitted, seed=seed, progress=stage("testing"))
    bundle = _export(
        fitted,
        out,
        name=name,
        data=data,
        metrics=metrics,
        sample=[pair.chosen for pair in test],
        # Of benign conversations alone, what it learned to dislike would be unlike all it knows.
        domain=DomainRows(_answers(train), _answers(dev)),
        reference=reference or [pair.chosen for pair in dev],
    )
    return Report(bundle, metrics, {part: len(index) for part, index in parts.items()})


def _answers(pairs: Sequence[Preference]) -> list[Interaction]:
    return [answer for pair in pairs for answer in (pair.chosen, pair.rejected)]


def reward_metrics(
    pairs: Sequence[Preference], fitted: Fitted, *, seed: int, progress: Progress | None = None
) -> dict[str, Interval]:
    """Pairwise accuracy on pairs that were not trained on."""
    scores = fitted.scores(
        [pair.chosen for pair in pairs] + [pair.rejected for pair in pairs], progress
    )
    better, worse = scores[: len(pairs)], scores[len(pairs) :]
    return {
        "pairwise_accuracy": grouped_interval(
            lambda picked: pairwise_accuracy(better[picked], worse[picked]),
            [pair.family for pair in pairs],
            seed=seed,
        )
    }


def _export(
    fitted: Fitted,
    out: Path,
    *,
    name: str,
    data: Sequence[DataFile],
    metrics: dict[str, Interval],
    sample: Sequence[Interaction],
    domain: DomainRows | None = None,
    calibration: Calibration | None = None,
    reference: Sequence[Interaction] = (),
) -> Bundle:
    figures: dict[str, float] = {}
    for key, interval in metrics.items():
        figures |= {key: interval.value, f"{key}.low": interval.low, f"{key}.high": interval.high}
    with quiet_transformers():
        return export_bundle(
            fitted.kind,
            fitted.save(),
            out,
            name=name,
            template=(fitted.template.first, fitted.template.second),
            max_length=fitted.template.max_length,
            windows=fitted.template.windows,
            sample=sample,
            domain=domain,
            reference=reference,
            calibration=calibration,
            lineage=Lineage(
                base=base_identity(fitted.base), data=tuple(item.digest for item in data)
            ),
            metrics=figures,
        )


def _rated(rows: Sequence[Judgement]) -> list[int]:
    mixed = mixed_sources(rows)
    return [i for i, row in enumerate(rows) if not mixed or row.source in mixed]


def _enough(calibrate: int, test: int) -> None:
    if min(calibrate, test) < MIN_HELD_OUT:
        raise InputError(
            f"only {calibrate} rows to calibrate with and {test} to test with; {MIN_HELD_OUT} of "
            "each are needed: give more data or a larger --holdout"
        )


def _silent(_stage: str) -> Progress:
    return lambda _done, _total: None
