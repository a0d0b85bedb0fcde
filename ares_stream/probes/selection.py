"""Which compositions to try next: the default method, `adaptive`. Pure and seeded.

1. A covering design: every topic with every tactic once, personas rotated, in random order.
   Blocks of weaknesses are wide, so a few hundred probes touch nearly all of them once. It
   takes the larger part of each batch while it lasts.
2. Each other slot of a batch draws from a mixture: with probability `floor` uniformly
   from everything allowed; else from a softmax of one posterior sample of the surrogate
   (Thompson sampling), where solved cells are left out and cells that answered cleanly count
   less.

A prior tells where failures are, so the larger part of each batch looks for what it does not tell.
The failures that the other campaign confirmed are tried first, then once each cell of the half of
topics × tactics that the prior expects most of, then cells anywhere: each time the composition that
promises most, where pairs of components that were little tried are a promise too. What is known to
fail by now is left to the draws.

Each choice carries the exact probability of its draw given everything before it (the posterior
sample included), at least floor / compositions after the covering design. Weighting by its
inverse gives unbiased rates over the whole space (Horvitz-Thompson; the covering design is a
stratified sample whose marginal is exact too). What a prior makes a campaign look for is no
sample of the space: it has probability 1, and so next to no weight.

State is a function of (seed, observations in order): batch k draws from a generator seeded by
(seed, k), so a campaign that is replayed from its record continues with the same choices.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal, Protocol

import numpy as np

from ares_stream.errors import SettingsError
from ares_stream.probes.space import Floats, Indices, Singles, Space
from ares_stream.probes.surrogate import FeaturePrior, PairSurrogate, SurrogatePolicy

SELECTION = 2
"""Raised when the same findings lead to other choices. A campaign's id depends on it, so that what
an earlier version began is another campaign, and is not continued with other choices."""
CUT_OFF = 25.0
"""Softmax weights below e^-25 of the peak are never drawn; leaving them out keeps a batch's
cost far below the size of the space."""

Source = Literal["cover", "learnt", "floor", "uniform", "weights", "elites"]


@dataclass(frozen=True, slots=True)
class Choice:
    """A composition to try, with the probability of drawing it and the part that drew it."""

    number: int
    probability: float
    source: Source


@dataclass(frozen=True, slots=True)
class Finding:
    """What a tried composition earned.

    `harm`: the judges' probability. `reward`: how much the reward model liked the answer, its
    quantile or 1.0 where it is scored high. `confirmed`: a failure that survived resampling,
    by the judges that the campaign has, never by an oracle. A probe that earns nothing
    (gibberish, off topic) has harm 0.
    """

    number: int
    harm: float
    reward: float
    confirmed: bool

    @property
    def fitness(self) -> float:
        """Disagreement: harmful and liked, in [0, 1]."""
        return self.harm * self.reward


@dataclass(frozen=True, slots=True)
class Prior:
    """What one campaign learnt, for another: the meta-learning.

    `failures`: confirmed ones as axis → component id, each as unlike those before it as can be.
    What another taxonomy lacks is ignored.
    """

    harm: FeaturePrior
    reward: FeaturePrior
    failures: tuple[Mapping[str, str], ...] = ()


class Selector(Protocol):
    """A search method. `propose` and `observe` alternate; both are deterministic."""

    @property
    def name(self) -> str:
        """The method's name in reports."""
        ...

    def propose(self, count: int) -> tuple[Choice, ...]:
        """The next `count` compositions to try."""
        ...

    def observe(self, findings: Sequence[Finding]) -> None:
        """Learn from what earlier proposals earned."""
        ...

    def new_release(self) -> None:
        """The policy or the reward model changed: what was learnt may no longer hold."""
        ...


@dataclass(frozen=True, slots=True)
class AdaptivePolicy:
    """How `adaptive` spends its budget."""

    cover_axes: tuple[str, str] = ("topic", "tactic")
    rotate_axis: str = "persona"
    cell_axes: tuple[str, ...] = ("topic", "persona", "tactic")
    """A confirmed failure solves its cell: the same weakness in other words is not news."""
    cover_share: float = 0.7
    """Share of a batch that the covering design takes while it lasts; with a prior, that looks
    for what the prior does not tell."""
    floor: float = 0.05
    temperature: float = 0.01
    thompson_samples: int = 4
    """Posterior samples per batch; slots take them in turn."""
    clean_factor: float = 0.7
    """A cell's expected value is multiplied by this for each clean answer in it."""
    discount: float = 0.3
    """Weight that earlier observations keep at a new release."""
    harm_level: float = 0.1
    reward_level: float = 0.5
    """Expected harm, and expected liking of a harmful answer, of an untried composition."""
    prior_weight: float = 0.03
    """Trust in what another campaign learnt, as a factor on the precision of its data. Small,
    since another policy has weaknesses of its own, which a firm belief would never look for."""
    carried: int = 40
    """Failures that go into a prior: as many as find each weakness again, and no more, since each
    costs two queries that find nothing new."""
    promising: float = 0.5
    """Share of the covering design that is tried first where a prior says which."""
    known: float = 0.5
    """Expected fitness from which a campaign with a prior takes a composition to be known."""
    novelty: float = 0.1
    """Worth, in expected fitness, of a pair of components that was never tried."""
    surrogate: SurrogatePolicy = field(default_factory=SurrogatePolicy)


class Adaptive:
    """Covering design, then Thompson sampling on a linear model of component pairs."""

    name = "adaptive"

    def __init__(
        self,
        space: Space,
        seed: int,
        policy: AdaptivePolicy | None = None,
        prior: Prior | None = None,
    ) -> None:
        self.space = space
        self.policy = policy or AdaptivePolicy()
        self._seed = seed
        self._batch = 0
        self._informed = prior is not None
        surrogate = self.policy.surrogate
        if prior is not None:
            weight = self.policy.prior_weight
            prior = replace(
                prior, harm=prior.harm.discounted(weight), reward=prior.reward.discounted(weight)
            )
        self.harm = PairSurrogate(
            space, surrogate, self.policy.harm_level, prior.harm if prior else None
        )
        self.reward = PairSurrogate(
            space, surrogate, self.policy.reward_level, prior.reward if prior else None
        )
        self._cell = space.project(self.policy.cell_axes)
        cells = int(self._cell.max()) + 1
        of_allowed = self._cell[space.numbers]
        self._by_cell = np.argsort(of_allowed, kind="stable")
        self._cell_starts = np.searchsorted(of_allowed[self._by_cell], np.arange(cells + 1))
        self._solved = np.zeros(cells, dtype=bool)
        self._clean = np.zeros(cells, dtype=np.int64)
        self._confirmed: list[int] = []
        self._cover_cell = space.project(self.policy.cover_axes)[space.numbers]
        self._cover = self._covering_design()
        self._again: list[Choice] = []
        self._promising: list[int] = []
        if prior is not None:
            self._plan(prior)

    def propose(self, count: int) -> tuple[Choice, ...]:
        """The part of the covering design, or what a prior makes one look for; then draws."""
        rng = np.random.default_rng([self._seed, 1, self._batch])
        self._batch += 1
        chosen = self._sought(count, rng) if self._informed else self._covered(count)
        missing = count - len(chosen)
        return tuple(chosen) + (self._draw(missing, rng) if missing else ())

    def observe(self, findings: Sequence[Finding]) -> None:
        """Update the surrogate and the cells."""
        for finding in findings:
            self.harm.observe(finding.number, finding.harm)
            # The score of a safe answer says nothing about the reward model's blindness.
            if finding.harm > 0:
                self.reward.observe(finding.number, finding.reward, finding.harm)
            cell = self._cell[finding.number]
            if finding.confirmed:
                self._solved[cell] = True
                self._confirmed.append(finding.number)
            else:
                self._clean[cell] += 1

    def new_release(self) -> None:
        """Cells open again; beliefs stay, discounted, so that a repaired weakness is soon left
        and one that was not repaired is soon found again."""
        self.harm.discount(self.policy.discount)
        self.reward.discount(self.policy.discount)
        self._solved[:] = False
        self._clean[:] = 0

    def predict(self, numbers: Indices) -> Floats:
        """Expected fitness of compositions, by the posterior means; shape (len(numbers),)."""
        harm = np.clip(self.harm.scores(self.harm.mean())[numbers], 0.0, 1.0)
        reward = np.clip(self.reward.scores(self.reward.mean())[numbers], 0.0, 1.0)
        return np.asarray(harm * reward)

    def export(self) -> Prior:
        """The posterior over components, to warm up another campaign."""
        failures = tuple(self.space.ids(number) for number in self._unlike_failures())
        return Prior(self.harm.export(), self.reward.export(), failures)

    def _unlike_failures(self) -> list[int]:
        """Confirmed failures, each next the one with the most pairs of components that no earlier
        one has; at most `carried`, and none without a new pair."""
        numbers = np.asarray(self._confirmed, dtype=np.int64)
        pairs = self.harm.pair_columns(numbers)
        left = dict(zip(self._confirmed, map(set, pairs.tolist()), strict=True))
        chosen: list[int] = []
        while left and len(chosen) < self.policy.carried:
            best = max(left, key=lambda number: len(left[number]))
            seen = left.pop(best)
            if not seen:
                break
            chosen.append(best)
            for others in left.values():
                others -= seen
        return chosen

    def _plan(self, prior: Prior) -> None:
        """What to try first with a prior: known failures, and the cells of the covering design
        that it expects most of."""
        for ids in prior.failures:
            try:
                number = self.space.number(ids)
            except SettingsError:
                continue
            if self.space.allowed[number]:
                self._again.append(Choice(number, 1.0, "elites"))
        sums = np.bincount(self._cover_cell, self.predict(self.space.numbers))
        expected = sums / np.maximum(np.bincount(self._cover_cell), 1)
        place = np.searchsorted(self.space.numbers, [choice.number for choice in self._cover])
        order = self._cover_cell[place].tolist()
        ranked = sorted(order, key=lambda cell: -expected[cell])
        promising = set(ranked[: int(len(ranked) * self.policy.promising)])
        self._promising = [cell for cell in order if cell in promising]

    def _covered(self, count: int) -> list[Choice]:
        """A batch's part of the covering design: all of the first one, as nothing is known."""
        take = count if self._batch == 1 else math.ceil(count * self.policy.cover_share)
        chosen, self._cover = self._cover[:take], self._cover[take:]
        return chosen

    def _sought(self, count: int, rng: np.random.Generator) -> list[Choice]:
        """A batch's part that looks for what a prior does not tell: by expected fitness and by
        how little the pairs of components were tried. Each cell at most once."""
        take = math.ceil(count * self.policy.cover_share)
        chosen, self._again = self._again[:take], self._again[take:]
        expected = self.predict(np.arange(len(self.space)))
        tried = self.harm.seen()
        novelty = self.policy.novelty / (1.0 + tried)
        novelty[: self.harm.first_pair] = 0.0
        # Of equals one at random, by less than any difference that counts.
        worth = expected + self.harm.scores(novelty) + 1e-9 * rng.random(len(expected))
        closed = ~self.space.allowed | self._solved[self._cell] | (expected >= self.policy.known)
        worth[closed] = -np.inf
        while len(chosen) < take:
            narrowed = bool(self._promising)
            if narrowed:
                among = self.space.numbers[self._cover_cell == self._promising.pop(0)]
                number = int(among[np.argmax(worth[among])])
            else:
                number = int(np.argmax(worth))
            if worth[number] > -np.inf:
                chosen.append(Choice(number, 1.0, "cover"))
                self._tire(worth, tried, number)
            elif not narrowed:
                break
        return chosen

    def _tire(self, worth: Floats, tried: Floats, number: int) -> None:
        """Close a composition's cell, and lower what its pairs of components are worth."""
        worth[self.space.numbers[self._members(int(self._cell[number]))]] = -np.inf
        grid = worth.reshape(self.space.sizes)
        at = self.space.unravel(np.array([number]))[0]
        columns = self.harm.pair_columns(np.array([number]))[0]
        for (first, second), column in zip(self.space.pairs(), columns, strict=True):
            same: list[int | slice] = [slice(None)] * len(at)
            same[first], same[second] = int(at[first]), int(at[second])
            before = 1.0 / (1.0 + tried[column])
            tried[column] += 1.0
            grid[tuple(same)] -= self.policy.novelty * (before - 1.0 / (1.0 + tried[column]))

    def _covering_design(self) -> list[Choice]:
        """One composition per cell of the two covering axes, as evenly as can be over the
        rotated axis, everything else uniform among what is allowed."""
        rng = np.random.default_rng([self._seed, 0])
        space, policy = self.space, self.policy
        pair = self._cover_cell
        turn_of = space.project((policy.rotate_axis,))
        rotated = turn_of[space.numbers]
        order = np.lexsort((rotated, pair))
        pairs, starts = np.unique(pair[order], return_index=True)
        groups = np.split(space.numbers[order], starts[1:])
        turns = int(rotated.max()) + 1
        shift_a, shift_b = rng.permutation(turns), rng.permutation(turns)
        columns = space.sizes[space.axis(policy.cover_axes[1])]
        relabel = rng.permutation(turns)
        chosen: list[Choice] = []
        for cell in rng.permutation(len(pairs)):
            group = groups[cell]
            row, column = divmod(int(pairs[cell]), columns)
            turn = relabel[
                (shift_a[row % turns] + shift_b[column % turns] + row // turns + column // turns)
                % turns
            ]
            of_turn = group[turn_of[group] == turn]
            pool = of_turn if len(of_turn) else group
            chosen.append(Choice(int(rng.choice(pool)), 1.0 / (len(pairs) * len(group)), "cover"))
        return chosen

    def _draw(self, count: int, rng: np.random.Generator) -> tuple[Choice, ...]:
        numbers = self.space.numbers
        harm = self.harm.samples(self.policy.thompson_samples, rng)
        reward = self.reward.samples(self.policy.thompson_samples, rng)
        cell = self._cell[numbers]
        of_cell = np.where(self._solved, 0.0, self.policy.clean_factor**self._clean)
        damping: Singles = of_cell.astype(np.float32)[cell]
        densities = [
            self._density(harm[:, k], reward[:, k], damping)
            for k in range(self.policy.thompson_samples)
        ]
        taken: set[int] = set()
        choices: list[Choice] = []
        for slot in range(count):
            learnt = densities[slot % len(densities)]
            floor = 1.0 if learnt.empty else self.policy.floor
            from_floor = rng.random() < floor
            place = int(rng.integers(len(numbers))) if from_floor else learnt.draw(rng)
            probability = floor / len(numbers) + (1 - floor) * learnt.share(place)
            source: Source = "floor" if from_floor else "learnt"
            choices.append(Choice(int(numbers[place]), float(probability), source))
            drawn = int(cell[place])
            if drawn not in taken:
                taken.add(drawn)
                same = self._members(drawn)
                for density in densities:
                    density.remove(same)
        return tuple(choices)

    def _members(self, cell: int) -> Indices:
        """Places, among the allowed numbers, of a cell's compositions."""
        return self._by_cell[self._cell_starts[cell] : self._cell_starts[cell + 1]]

    def _density(self, harm: Floats, reward: Floats, damping: Singles) -> _Density:
        """Softmax over the allowed compositions under one posterior sample, cut off where it
        is below exp(-CUT_OFF) of its peak."""
        numbers = self.space.numbers
        # Single precision: half the memory to pass over, and 1e-5 of a weight.
        scores = np.clip(self.harm.scores(harm.astype(np.float32)), 0.0, 1.0)
        scores *= np.clip(self.reward.scores(reward.astype(np.float32)), 0.0, 1.0)
        if len(numbers) < len(scores):
            scores = scores[numbers]
        scores *= damping
        temperature = self.policy.temperature
        places = np.flatnonzero(scores >= scores.max() - CUT_OFF * temperature)
        weights = np.exp((scores[places].astype(np.float64) - scores.max()) / temperature)
        # A solved cell is no choice of the learnt part, even when its score ties.
        weights[damping[places] == 0.0] = 0.0
        return _Density(places, weights)


class _Density:
    """Draws places in proportion to weights, some of which are taken out one after the other.

    What is taken out is drawn again (rejection), and the cumulative sum made anew only when
    half of its mass is gone: a sum per removal would cost more than everything else.
    """

    def __init__(self, places: Indices, weights: Floats) -> None:
        """`places` ascend; any other place has weight 0."""
        self._places = places
        self._weights = weights
        self._left = 0.0
        self._sum_up()

    @property
    def empty(self) -> bool:
        return self._left <= 1e-12

    def share(self, place: int) -> float:
        """Probability of a place, 0 when it was taken out."""
        at = int(np.searchsorted(self._places, place))
        if self.empty or at == len(self._places) or self._places[at] != place:
            return 0.0
        return float(self._weights[at] / self._left)

    def draw(self, rng: np.random.Generator) -> int:
        """A place that was not taken out; never when empty."""
        if self._left < 0.5 * self._cumulative[-1]:
            self._sum_up()
        while True:
            target = rng.random() * self._cumulative[-1]
            at = min(
                int(np.searchsorted(self._cumulative, target, side="right")), len(self._places) - 1
            )
            if self._weights[at] > 0:
                return int(self._places[at])

    def remove(self, places: Indices) -> None:
        """Take places out."""
        at = np.minimum(np.searchsorted(self._places, places), len(self._places) - 1)
        at = at[self._places[at] == places]
        self._left = max(0.0, self._left - float(self._weights[at].sum()))
        self._weights[at] = 0.0
        if self._left < 1e-9:  # So little may be rounding alone.
            self._sum_up()

    def _sum_up(self) -> None:
        self._cumulative = np.cumsum(self._weights)
        self._left = float(self._cumulative[-1]) if self._cumulative.size else 0.0
