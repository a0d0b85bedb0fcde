"""One bundle, ready to score: encoder, session and calibration behind one call."""

from __future__ import annotations

import asyncio
import math
from bisect import bisect_right
from collections.abc import Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from itertools import islice
from typing import Final

import numpy as np
import numpy.typing as npt

from ares_stream.errors import BundleError, ResourceError, ScoringError
from ares_stream.models.bundles import TOKENIZER, Bundle, Calibration, Outputs, RewardReference
from ares_stream.records.interaction import Interaction
from ares_stream.scoring.batching import BatchPolicy, plan
from ares_stream.scoring.domain import Sign, Space, farthest, sign
from ares_stream.scoring.runtime import OnnxModel, Provider
from ares_stream.scoring.tokenising import InputEncoder, Reading, Tokens

PROBABILITY_SLACK = 1e-3
_EDGE = 1e-6
"""Probabilities are kept this far from 0 and 1: a float32 softmax says exactly 1 sometimes, and
its logit would be infinite."""


@dataclass(frozen=True, slots=True)
class Output:
    """What a model says of one window of text: a calibrated probability of harm, or a reward;
    and how far it lies from the training rows, where the bundle can tell."""

    value: float
    distance: float | None = None


@dataclass(frozen=True, slots=True)
class Result:
    """What one run gave: logits [inputs, labels], and each input's distance from the training
    rows, where the bundle has a domain."""

    logits: npt.NDArray[np.float32]
    distances: Sequence[float] | None


@dataclass(frozen=True, slots=True)
class Opinion:
    """What a model says of one answer: of a judge the worst of the windows, of a reward model
    their mean, weighted by their tokens; how many it read, and what it did not read."""

    value: float
    windows: int = 1
    encodings: tuple[str, ...] = ()
    unread: int = 0
    domain: Sign | None = None


_NOT_RUN: Final = ScoringError("no run held this window")


class ScoringModel:
    """A loaded bundle. Values are probabilities of harm (calibrated) or rewards.

    Models that read alike may share an `encoder`; see `reads`.
    """

    def __init__(
        self,
        bundle: Bundle,
        provider: Provider,
        encoder: InputEncoder | None = None,
        *,
        draft: bool = False,
        tf32: bool = False,
    ) -> None:
        """A `draft` has neither calibration nor reference yet: it gives raw outputs.

        Raises BundleError for what cannot be used, IntegrityError where a file has changed since
        it was verified.
        """
        self.bundle = bundle
        self.name = bundle.manifest.name
        self._outputs = bundle.manifest.outputs
        self._calibration = Calibration() if draft else bundle.manifest.calibration
        self.encoder = encoder or InputEncoder(bundle)
        self._onnx = OnnxModel(bundle, provider, tf32=tf32)
        self.provider = self._onnx.provider
        self.dtype = self._onnx.dtype
        if bundle.manifest.kind == "reward" and bundle.manifest.reference is None and not draft:
            raise BundleError(
                f"{bundle.path}: a reward model without reference quantiles cannot say what is "
                "high; make them with `ares bundle reference`"
            )
        self._reference = bundle.manifest.reference
        self._domain = bundle.manifest.domain
        self._space = None if self._domain is None else Space.read(bundle)
        bundle.check_unchanged()
        self._answered: Tokens | None = None
        self.reads_decoded = bundle.manifest.kind == "harm"
        """Whether it also reads what is encoded in an answer."""

    async def values(
        self, inputs: Sequence[tuple[Interaction, str]], executor: Executor
    ) -> list[float | ScoringError]:
        """One number per (interaction, answer), in order, by one thread of the executor."""
        loop = asyncio.get_running_loop()
        opinions = await loop.run_in_executor(executor, self.opinions, inputs)
        return [item.value if isinstance(item, Opinion) else item for item in opinions]

    def opinions(self, inputs: Sequence[tuple[Interaction, str]]) -> list[Opinion | ScoringError]:
        """One per (interaction, answer), in order. Blocks."""
        readings = self.encoder.read(inputs)
        tokens = [
            window
            for item in readings
            if isinstance(item, Reading)
            for window in self.windows(item)
        ]
        outputs: list[Output | ScoringError] = [_NOT_RUN] * len(tokens)
        order: list[int] = []
        results: list[Result | ScoringError] = []
        for batch in self.plan([len(item) for item in tokens]):
            order += batch
            results += self.run([tokens[row] for row in batch])
        for row, output in zip(order, self.outputs(results), strict=True):
            outputs[row] = output
        rows = iter(outputs)
        return [
            item
            if isinstance(item, ScoringError)
            else self.opinion(item, list(islice(rows, len(self.windows(item)))))
            for item in readings
        ]

    @property
    def batching(self) -> BatchPolicy:
        """What bounds its runs."""
        return self._onnx.batching

    def plan(self, lengths: Sequence[int]) -> list[list[int]]:
        """Which inputs of these lengths run together."""
        return plan(lengths, self._onnx.batching)

    def run(self, batch: Sequence[Tokens]) -> list[Result | ScoringError]:
        """What the model gives for the inputs, in order. A batch that fails is halved down to the
        input at fault. Blocks; `outputs` reads what several runs gave.

        Raises ResourceError where there is no memory for one input alone, or the runtime fails on
        what it has answered before: no input is at fault then, and after an error of its GPU a
        process gets no answer any more.
        """
        try:
            logits, states = self._onnx.run_with_states(batch)
            distances = (
                None
                if self._space is None or states is None
                else self._space.distances(states).tolist()
            )
        except (ScoringError, ResourceError) as error:
            if len(batch) == 1:
                if isinstance(error, ResourceError):
                    raise
                self._expect_an_answer()
                return [error]
            middle = len(batch) // 2
            return [*self.run(batch[:middle]), *self.run(batch[middle:])]
        if self._answered is None:
            self._answered = batch[-1]
        return [Result(logits, distances)]

    def _expect_an_answer(self) -> None:
        if self._answered is None:
            return
        try:
            self._onnx.run([self._answered])
        except ScoringError as error:
            reason = f"model {self.name} gives no answer any more on {self.provider}: {error}"
        else:
            return
        raise ResourceError(reason)

    def outputs(self, results: Sequence[Result | ScoringError]) -> list[Output | ScoringError]:
        """One output per input of the runs that gave these results, in order."""
        whole = [item for item in results if isinstance(item, Result)]
        values = iter(self._values([item.logits for item in whole]))
        outputs: list[Output | ScoringError] = []
        for item in results:
            if isinstance(item, ScoringError):
                outputs.append(item)
                continue
            for row in range(len(item.logits)):
                value = next(values)
                if math.isfinite(value):
                    distance = None if item.distances is None else item.distances[row]
                    outputs.append(Output(value, distance))
                else:
                    reason = f"model {self.name} gave {value} for this conversation"
                    outputs.append(ScoringError(reason))
        return outputs

    def _values(self, logits: Sequence[npt.NDArray[np.float32]]) -> list[float]:
        """Probabilities or rewards. Many small runs cost one pass of numpy."""
        if not logits:
            return []
        if len({item.shape[1] for item in logits}) > 1:
            return [value for item in logits for value in self._values([item])]
        raw = read_outputs(np.concatenate(logits), self._outputs)
        values = (
            raw if self._outputs.activation == "identity" else calibrate(raw, self._calibration)
        )
        return list(values.tolist())

    def opinion(
        self, reading: Reading, outputs: Sequence[Output | ScoringError]
    ) -> Opinion | ScoringError:
        """The opinion of an answer from the outputs of its windows, in their order."""
        values: list[float] = []
        distances: list[float] = []
        for output in outputs:
            if isinstance(output, ScoringError):
                return output
            values.append(output.value)
            if output.distance is not None:
                distances.append(output.distance)
        domain = self._sign(reading, distances) if distances else None
        if len(values) == 1:
            return Opinion(values[0], unread=reading.unread, domain=domain)
        if self.reads_decoded:
            return Opinion(max(values), len(values), reading.encodings, reading.unread, domain)
        sizes = [len(tokens) for tokens in reading.windows]
        mean = sum(value * size for value, size in zip(values, sizes, strict=True)) / sum(sizes)
        return Opinion(mean, len(values), unread=reading.unread, domain=domain)

    def _sign(self, reading: Reading, distances: Sequence[float]) -> Sign:
        assert self._domain is not None  # noqa: S101 - without one there are no distances
        unknown = self.encoder.unknown_share(reading)
        return sign(farthest(distances), unknown, reading.answer, self._domain)

    def windows(self, reading: Reading) -> tuple[Tokens, ...]:
        """What of an answer this model reads: a judge also reads what is encoded in it."""
        if self.reads_decoded:
            return (*reading.windows, *reading.decoded)
        return reading.windows

    def quantile(self, reward: float) -> float:
        """Share of the benign reference scores at or below this reward."""
        assert self._reference is not None  # noqa: S101 - the constructor refuses it
        return quantile(reward, self._reference)


def reads(bundle: Bundle) -> tuple[str, str]:
    """Equal for bundles whose models get the same tokens of every conversation."""
    manifest = bundle.manifest
    return manifest.files[TOKENIZER], manifest.template.model_dump_json()


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
    elif outputs.activation == "probability":
        # Rounding may carry a sum past 1; what is no probability at all stays visible.
        values = wide[:, labels].sum(axis=1)
        values[(values < -PROBABILITY_SLACK) | (values > 1 + PROBABILITY_SLACK)] = np.nan
        values = np.clip(values, 0.0, 1.0)
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
    return bisect_right(reference.scores, reward) / len(reference.scores)
