"""One bundle, ready to score: encoder, session and calibration behind one call."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from concurrent.futures import Executor

import numpy as np
import numpy.typing as npt

from ares_stream.errors import BundleError, ScoringError
from ares_stream.models.bundles import Bundle, Calibration, Outputs, RewardReference
from ares_stream.records.interaction import Interaction
from ares_stream.scoring.batching import padding_share, plan
from ares_stream.scoring.contract import ScoringObserver
from ares_stream.scoring.runtime import OnnxModel, Provider
from ares_stream.scoring.tokenising import InputEncoder, Tokens

_EDGE = 1e-6
"""Probabilities are kept this far from 0 and 1: a float32 softmax says exactly 1 sometimes, and
its logit would be infinite."""


class ScoringModel:
    """A loaded bundle. Values are probabilities of harm (calibrated) or rewards."""

    def __init__(self, bundle: Bundle, provider: Provider) -> None:
        self.bundle = bundle
        self.name = bundle.manifest.name
        self._outputs = bundle.manifest.outputs
        self._calibration = bundle.manifest.calibration
        self._encoder = InputEncoder(bundle)
        self._onnx = OnnxModel(bundle, provider)
        self.provider = self._onnx.provider
        if bundle.manifest.kind == "reward" and bundle.manifest.reference is None:
            raise BundleError(
                f"{bundle.path}: a reward model without reference quantiles cannot say what is "
                "high; make them with `ares bundle reference`"
            )
        self._reference = bundle.manifest.reference

    async def values(
        self,
        inputs: Sequence[tuple[Interaction, str]],
        executor: Executor,
        observer: ScoringObserver,
    ) -> list[float | ScoringError]:
        """One number per (interaction, answer), in order. Work runs in the executor's threads,
        batches side by side; a batch that fails is halved down to the input at fault."""
        loop = asyncio.get_running_loop()
        started = time.perf_counter()
        tokens = await loop.run_in_executor(executor, self._encoder.encode, inputs)
        observer.stage("tokenise", time.perf_counter() - started)
        results: list[float | ScoringError] = [
            item if isinstance(item, ScoringError) else 0.0 for item in tokens
        ]
        rows = [(index, item) for index, item in enumerate(tokens) if isinstance(item, Tokens)]
        batches = plan([len(item) for _, item in rows], self._onnx.batching)
        started = time.perf_counter()
        runs = [
            loop.run_in_executor(executor, self._timed, [rows[row][1] for row in batch])
            for batch in batches
        ]
        for batch, (values, waited, ran) in zip(batches, await asyncio.gather(*runs), strict=True):
            observer.batch(self.name, len(batch), padding_share([len(rows[r][1]) for r in batch]))
            observer.stage("queue", waited - started)
            observer.stage("infer", ran)
            for row, value in zip(batch, values, strict=True):
                results[rows[row][0]] = value
        return results

    def quantile(self, reward: float) -> float:
        """Share of the benign reference scores at or below this reward."""
        assert self._reference is not None  # noqa: S101 - the constructor refuses it
        return quantile(reward, self._reference)

    def _timed(self, batch: Sequence[Tokens]) -> tuple[list[float | ScoringError], float, float]:
        """Values, when the run began, and how long it took."""
        began = time.perf_counter()
        values = self._run(batch)
        return values, began, time.perf_counter() - began

    def _run(self, batch: Sequence[Tokens]) -> list[float | ScoringError]:
        try:
            logits = self._onnx.run(batch)
        except ScoringError as error:
            if len(batch) == 1:
                return [error]
            middle = len(batch) // 2
            return [*self._run(batch[:middle]), *self._run(batch[middle:])]
        raw = read_outputs(logits, self._outputs)
        values = (
            raw if self._outputs.activation == "identity" else calibrate(raw, self._calibration)
        )
        return [
            float(value)
            if np.isfinite(value)
            else ScoringError(f"model {self.name} gave {value} for this conversation")
            for value in values
        ]


def read_outputs(logits: npt.NDArray[np.float32], outputs: Outputs) -> npt.NDArray[np.float64]:
    """One number per row of logits [n, labels]: a probability, or the reward. Not finite where
    the logits are not."""
    if max(outputs.labels) >= logits.shape[1]:
        raise ScoringError(
            f"the model has {logits.shape[1]} labels; its bundle reads label {max(outputs.labels)}"
        )
    wide = logits.astype(np.float64)
    labels = list(outputs.labels)
    if outputs.activation == "identity":
        values: npt.NDArray[np.float64] = wide[:, labels[0]]
    elif outputs.activation == "softmax":
        with np.errstate(invalid="ignore"):
            exponents = np.exp(wide - wide.max(axis=1, keepdims=True))
        values = exponents[:, labels].sum(axis=1) / exponents.sum(axis=1)
    else:
        values = np.max(1.0 / (1.0 + np.exp(-np.clip(wide[:, labels], -500, 500))), axis=1)
    values[~np.isfinite(wide).all(axis=1)] = np.nan
    return values


def logit(probability: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """log(p / (1 - p)), finite: p is kept inside [1e-6, 1 - 1e-6]."""
    inside = np.clip(probability, _EDGE, 1 - _EDGE)
    return np.asarray(np.log(inside) - np.log1p(-inside))


def calibrate(
    probability: npt.NDArray[np.float64], calibration: Calibration
) -> npt.NDArray[np.float64]:
    """Platt scaling (Platt 1999) of probabilities; NaN stays NaN."""
    scaled = calibration.slope * logit(probability) + calibration.intercept
    return np.asarray(1.0 / (1.0 + np.exp(-scaled)))


def quantile(reward: float, reference: RewardReference) -> float:
    """Place of a reward among the reference scores, 0 (below all) to 1 (at or above all)."""
    scores = np.asarray(reference.scores)
    return float(np.searchsorted(scores, reward, side="right") / len(scores))
