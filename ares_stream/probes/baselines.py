"""Search methods that `adaptive` is compared with. Pure and seeded, same contract."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from ares_stream.errors import SettingsError
from ares_stream.probes.archive import Archive
from ares_stream.probes.selection import Adaptive, Choice, Finding, Prior, Selector
from ares_stream.probes.space import Floats, Space

WARM_UP = 200
"""Uniform probes before `paper_weights` and `map_elites` use what they saw."""


class Uniform:
    """Independent uniform draws."""

    name = "uniform"

    def __init__(self, space: Space, seed: int) -> None:
        self.space = space
        self._rng = np.random.default_rng([seed, 2])

    def propose(self, count: int) -> tuple[Choice, ...]:
        """Draw with replacement."""
        numbers = self.space.numbers
        places = self._rng.integers(len(numbers), size=count)
        return tuple(Choice(int(numbers[k]), 1.0 / len(numbers), "uniform") for k in places)

    def observe(self, findings: Sequence[Finding]) -> None:
        """Learns nothing."""

    def new_release(self) -> None:
        """Forgets nothing."""


class UniformWithoutReplacement:
    """A random permutation of the space; begins again when it is used up."""

    name = "uniform_without_replacement"

    def __init__(self, space: Space, seed: int) -> None:
        self.space = space
        self._rng = np.random.default_rng([seed, 3])
        self._left: list[int] = []

    def propose(self, count: int) -> tuple[Choice, ...]:
        """The next of the permutation, each with its chance among what was left."""
        choices: list[Choice] = []
        for _ in range(count):
            if not self._left:
                self._left = self._rng.permutation(self.space.numbers).tolist()
            chance = 1.0 / len(self._left)
            choices.append(Choice(self._left.pop(), chance, "uniform"))
        return tuple(choices)

    def observe(self, findings: Sequence[Finding]) -> None:
        """Learns nothing."""

    def new_release(self) -> None:
        """Starts a new permutation."""
        self._left = []


class PaperWeights:
    """The multiplicative rule of arXiv 2604.18789, per component: a hit raises its components,
    w ← min(w · (1 + 0.2 · harm + 0.2 · reward), 0.15), normalised per axis.

    harm and reward in [0, 1] stand for the paper's s_judge / 5 and min(s_rm / 40, 1). No decay
    on a miss, no exploration bonus, no reset, as published. The cap is lifted to the uniform
    weight on an axis so short that 0.15 would be below it.
    """

    name = "paper_weights"

    def __init__(self, space: Space, seed: int) -> None:
        self.space = space
        self._rng = np.random.default_rng([seed, 4])
        self._weights = [np.full(size, 1.0 / size) for size in space.sizes]
        self._seen = 0

    def propose(self, count: int) -> tuple[Choice, ...]:
        """Draw each axis by its weights, conditioned on the constraints."""
        space = self.space
        grid = np.ones(space.sizes)
        for axis, weights in enumerate(self._weights):
            shape = [1] * len(space.sizes)
            shape[axis] = space.sizes[axis]
            grid = grid * weights.reshape(shape)
        density = grid.ravel()[space.numbers]
        return _draw(space, density / density.sum(), count, self._rng, "weights")

    def observe(self, findings: Sequence[Finding]) -> None:
        """Raise the components of confirmed failures, after the warm-up."""
        for finding in findings:
            self._seen += 1
            if not finding.confirmed or self._seen <= WARM_UP:
                continue
            factor = 1 + 0.2 * finding.harm + 0.2 * finding.reward
            indices = self.space.unravel(np.asarray([finding.number]))[0]
            for weights, index in zip(self._weights, indices, strict=True):
                cap = max(0.15, 1.0 / len(weights))
                weights[index] = min(weights[index] * factor, cap)
                weights /= weights.sum()

    def new_release(self) -> None:
        """The paper keeps its weights."""


class MapElites:
    """Rainbow Teaming's search without its LLM: pick an elite, change one component.

    Cells are topic × tactic with several elites. A tenth of the draws stay uniform.
    """

    name = "map_elites"

    def __init__(
        self, space: Space, seed: int, cell_axes: tuple[str, str] = ("topic", "tactic")
    ) -> None:
        self.space = space
        self._rng = np.random.default_rng([seed, 5])
        self._cell = space.project(cell_axes)
        self._archive: Archive[int, int] = Archive(depth=4)
        self._seen = 0

    def propose(self, count: int) -> tuple[Choice, ...]:
        """Mutate elites; each draw's probability sums over every elite that leads to it."""
        numbers = self.space.numbers
        parents = [elite.solution for _, elite in self._archive.elites()]
        uniform = np.full(len(numbers), 1.0 / len(numbers))
        if self._seen < WARM_UP or not parents:
            return _draw(self.space, uniform, count, self._rng, "uniform")
        density = np.zeros(self.space.sizes)
        open_axes = [axis for axis, size in enumerate(self.space.sizes) if size > 1]
        for parent in self.space.unravel(np.asarray(parents)):
            for axis in open_axes:
                line: list[int | slice] = [int(index) for index in parent]
                line[axis] = slice(None)
                density[tuple(line)] += 1.0 / self.space.sizes[axis]
        children = density.ravel()[numbers]
        mixture = 0.1 * uniform + 0.9 * children / children.sum()
        return _draw(self.space, mixture, count, self._rng, "elites")

    def observe(self, findings: Sequence[Finding]) -> None:
        """Offer every find to the archive."""
        for finding in findings:
            self._seen += 1
            self._archive.add(int(self._cell[finding.number]), finding.number, finding.fitness)

    def new_release(self) -> None:
        """Elites of another release prove nothing: the archive empties."""
        self._archive = Archive(depth=4)


def _draw(
    space: Space, density: Floats, count: int, rng: np.random.Generator, source: str
) -> tuple[Choice, ...]:
    cumulative = np.cumsum(density)
    places = np.searchsorted(cumulative, rng.random(count) * cumulative[-1], side="right")
    return tuple(
        Choice(int(space.numbers[k]), float(density[k]), source)  # type: ignore[arg-type]
        for k in places
    )


def make_selector(method: str, space: Space, seed: int, prior: Prior | None = None) -> Selector:
    """A search method by name. Raises SettingsError for an unknown one, or when a prior is
    given to a method that has no use for it."""
    if method == "adaptive":
        return Adaptive(space, seed, prior=prior)
    if prior is not None:
        raise SettingsError(f"method {method} takes no prior; only adaptive does")
    made = _BASELINES.get(method)
    if made is None:
        raise SettingsError(f"method {method}: unknown; one of {', '.join(METHODS)}")
    return made(space, seed)


_BASELINES: dict[str, Callable[[Space, int], Selector]] = {
    "uniform": Uniform,
    "uniform_without_replacement": UniformWithoutReplacement,
    "paper_weights": PaperWeights,
    "map_elites": MapElites,
}
METHODS = ("adaptive", *_BASELINES)
