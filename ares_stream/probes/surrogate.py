"""A Bayesian linear model of what a composition earns. Pure.

Features are one-hot: a constant, every component, every pair of components of two axes. A
planted or learnt weakness is rarely one component's; it is a tactic with a few topics, or a
tactic with a few personas, so pairs carry the signal and single components shrink them.

Posterior samples come from perturb-and-optimise (Papandreou and Yuille, NIPS 2010): a ridge
regression on noisy targets around a noisy prior is an exact posterior sample. Solved by
conjugate gradients on the sparse design, one costs about as much as reading the observations
30 times, whatever the number of features, where a Cholesky factor costs its cube.
"""

from __future__ import annotations

from array import array
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_matrix

from ares_stream.errors import SettingsError
from ares_stream.probes.space import Floats, Indices, Space

_Real = TypeVar("_Real", np.float32, np.float64)
CG_STEPS = 40
CG_TOLERANCE = 1e-2
"""Relative residual. Far below the posterior's own spread; tighter costs time and changes
no choice."""


@dataclass(frozen=True, slots=True)
class SurrogatePolicy:
    """Prior beliefs, as standard deviations of a reward in [0, 1]."""

    noise: float = 0.15
    constant_sd: float = 0.03
    component_sd: float = 0.1
    pair_sd: float = 0.1


@dataclass(frozen=True, slots=True)
class FeaturePrior:
    """What another campaign learnt: feature name → (mean, precision of its data).

    Names are "axis=id" and "axis=id&axis=id", so a prior fits any taxonomy that shares ids;
    what is unknown there is ignored.
    """

    features: Mapping[str, tuple[float, float]]

    def discounted(self, factor: float) -> FeaturePrior:
        """The same means, trusted by this factor: another policy is alike, not the same."""
        return FeaturePrior({name: (m, p * factor) for name, (m, p) in self.features.items()})


@dataclass(frozen=True, slots=True)
class _Design:
    """What the observations say, each row scaled by the square root of its precision."""

    rows: csr_matrix
    """(observations, features)"""
    scale: Floats
    """Per observation."""
    precision: Floats
    """Per feature: what the observations add to that of the prior."""


class PairSurrogate:
    """Observations in, beliefs out. Holds no random state."""

    def __init__(
        self,
        space: Space,
        policy: SurrogatePolicy,
        level: float,
        prior: FeaturePrior | None = None,
    ) -> None:
        """`level`: what a composition earns that nothing is known about."""
        self.space = space
        self.policy = policy
        self._pairs = space.pairs()
        sizes = space.sizes
        self._single_at = np.cumsum([1, *sizes])[:-1]
        self.first_pair = 1 + sum(sizes)
        starts = [self.first_pair]
        for first, second in self._pairs:
            starts.append(starts[-1] + sizes[first] * sizes[second])
        self._pair_at = starts[:-1]
        self.size = int(starts[-1])
        self._center = np.zeros(self.size)
        self._center[0] = level
        precision = np.full(self.size, self.policy.pair_sd**-2)
        precision[: self.first_pair] = self.policy.component_sd**-2
        precision[0] = self.policy.constant_sd**-2
        self._precision = precision
        if prior is not None:
            self._take(prior)
        self._numbers = array("q")
        self._values = array("d")
        self._weights = array("d")
        self._columns = np.zeros((0, 1 + len(sizes) + len(self._pairs)), dtype=np.int32)
        self._built: _Design | None = None

    def __len__(self) -> int:
        return len(self._numbers)

    def columns(self, numbers: Indices) -> Indices:
        """The features that are 1 for each composition, shape (n, 1 + axes + pairs)."""
        indices = self.space.unravel(numbers)
        columns = [np.zeros(len(numbers), dtype=np.int64)]
        columns += [start + indices[:, axis] for axis, start in enumerate(self._single_at)]
        for (first, second), start in zip(self._pairs, self._pair_at, strict=True):
            columns.append(
                start + indices[:, first] * self.space.sizes[second] + indices[:, second]
            )
        return np.stack(columns, axis=1)

    def pair_columns(self, numbers: Indices) -> Indices:
        """Those of pairs alone, shape (n, pairs), in the order of the space's pairs."""
        return self.columns(numbers)[:, 1 + len(self.space.axes) :]

    def observe(self, number: int, value: float, weight: float = 1.0) -> None:
        """Add what one composition earned, in [0, 1]."""
        self._numbers.append(number)
        self._values.append(value)
        self._weights.append(weight)
        self._built = None

    def discount(self, factor: float) -> None:
        """Trust everything seen so far less: a new release may answer otherwise."""
        self._weights = array("d", (weight * factor for weight in self._weights))
        self._built = None

    def seen(self) -> Floats:
        """How often each feature was observed; what was discounted counts in part."""
        if not self._numbers:
            return np.zeros(self.size)
        return self._design().precision * self.policy.noise**2

    def mean(self) -> Floats:
        """Posterior mean of every feature."""
        return self._solve(self._right_hand_side()[:, None])[:, 0]

    def samples(self, count: int, rng: np.random.Generator) -> Floats:
        """Posterior samples, shape (features, count)."""
        target = np.repeat(self._right_hand_side()[:, None], count, axis=1)
        target += np.sqrt(self._precision)[:, None] * rng.standard_normal((self.size, count))
        if self._numbers:
            rows = self._design().rows
            target += rows.T @ rng.standard_normal((rows.shape[0], count))
        return self._solve(target)

    def scores(self, features: NDArray[_Real]) -> NDArray[_Real]:
        """What each composition of the whole space earns under one feature vector, in its
        precision."""
        sizes = self.space.sizes
        pair_at = dict(zip(self._pairs, self._pair_at, strict=True))
        grid = np.asarray(features[0])
        # From the last axis on: only the terms of the first one pass over the whole grid.
        for axis in reversed(range(len(sizes))):
            start = int(self._single_at[axis])
            column = [sizes[axis]] + [1] * (len(sizes) - axis - 1)
            grid = grid + features[start : start + sizes[axis]].reshape(column)
            for other in range(axis + 1, len(sizes)):
                if (axis, other) not in pair_at:
                    continue
                start = pair_at[axis, other]
                shape = list(column)
                shape[other - axis] = sizes[other]
                grid += features[start : start + sizes[axis] * sizes[other]].reshape(shape)
        return np.asarray(grid.ravel())

    def names(self) -> list[str]:
        """Every feature's name, as a FeaturePrior holds it."""
        components = [
            [f"{axis}={name}" for name in ids]
            for axis, ids in zip(self.space.axes, self.space.components, strict=True)
        ]
        names = ["", *(name for ids in components for name in ids)]
        for first, second in self._pairs:
            names += [f"{a}&{b}" for a in components[first] for b in components[second]]
        return names

    def export(self) -> FeaturePrior:
        """Means and data precisions of the features that were seen at least once."""
        if not self._numbers:
            return FeaturePrior({})
        seen = self._design().precision
        mean = self.mean()
        names = self.names()
        return FeaturePrior(
            {
                names[column]: (round(float(mean[column]), 6), round(float(seen[column]), 6))
                for column in np.flatnonzero(seen)
            }
        )

    def _take(self, prior: FeaturePrior) -> None:
        places = {name: column for column, name in enumerate(self.names())}
        for name, (mean, precision) in prior.features.items():
            if not (np.isfinite(mean) and np.isfinite(precision) and precision >= 0):
                raise SettingsError(f"prior: {name}: mean and precision must be finite numbers")
            column = places.get(name)
            if column is None:
                continue
            self._center[column] = mean
            self._precision[column] += precision

    def _design(self) -> _Design:
        if self._built is None:
            new = self.columns(np.array(self._numbers[len(self._columns) :], dtype=np.int64))
            self._columns = np.concatenate([self._columns, new.astype(np.int32)])
            count, width = self._columns.shape
            scale = np.sqrt(np.array(self._weights)) / self.policy.noise
            data = np.repeat(scale, width)
            starts = np.arange(0, count * width + 1, width, dtype=np.int32)
            columns = self._columns.ravel()
            self._built = _Design(
                csr_matrix((data, columns, starts), (count, self.size)),
                scale,
                np.bincount(columns, data**2, self.size).astype(np.float64),
            )
        return self._built

    def _right_hand_side(self) -> Floats:
        target = self._precision * self._center
        if self._numbers:
            design = self._design()
            target = target + design.rows.T @ (design.scale * np.array(self._values))
        return np.asarray(target)

    def _solve(self, target: Floats) -> Floats:
        """Jacobi-preconditioned conjugate gradients, all columns at once."""
        if not self._numbers:
            return np.asarray(target / self._precision[:, None])
        design = self._design()
        rows, transposed = design.rows, design.rows.T
        diagonal = (self._precision + design.precision)[:, None]

        def apply(vector: Floats) -> Floats:
            product = transposed @ (rows @ vector)
            product += self._precision[:, None] * vector
            return np.asarray(product)

        solution = target / diagonal
        residual = target - apply(solution)
        direction = residual / diagonal
        energy = _dots(residual, direction)
        enough = CG_TOLERANCE**2 * _dots(target, target / diagonal)
        for _ in range(CG_STEPS):
            if np.all(energy <= enough):
                break
            image = apply(direction)
            step = energy / np.maximum(_dots(direction, image), 1e-300)
            solution += step * direction
            residual -= step * image
            scaled = residual / diagonal
            previous, energy = energy, _dots(residual, scaled)
            direction = scaled + energy / np.maximum(previous, 1e-300) * direction
        return np.asarray(solution)


def _dots(left: Floats, right: Floats) -> Floats:
    """Inner products, column by column."""
    return np.asarray(np.einsum("ij,ij->j", left, right))
