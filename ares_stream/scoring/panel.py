"""The panel: every judge and the reward model, asked together, swapped while running."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Final

import numpy as np

from ares_stream.errors import BundleError, ScoringError
from ares_stream.models.bundles import Bundle
from ares_stream.records.interaction import Interaction, Message, Policy
from ares_stream.records.verdict import Coverage, DomainSign, Harm, Reward
from ares_stream.scoring.contract import ScoringObserver
from ares_stream.scoring.judges import Judge
from ares_stream.scoring.model import Opinion, ScoringModel, logit, reads
from ares_stream.scoring.runs import Question, ask
from ares_stream.scoring.runtime import Provider
from ares_stream.scoring.tokenising import Input

DUMMY: Final = Interaction(
    id="warm-up",
    occurred_at=datetime(2000, 1, 1, tzinfo=UTC),
    messages=(Message(role="user", content="Is this model ready?"),),
    response="It is.",
    policy=Policy(name="none", version="0"),
)


@dataclass(frozen=True, slots=True)
class ScoringConfig:
    """Where models run. `threads` 0 means one per core that this process may use; `tf32` lets a
    GPU round, which makes scores depend on a record's company."""

    provider: Provider = "cpu"
    threads: int = 0
    tf32: bool = False


@dataclass(frozen=True, slots=True)
class Scores:
    """What the panel says of one interaction, and the digests of the models that said it: a
    judge that gave no opinion is not among them."""

    harm: Harm
    reward: Reward
    releases: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class _Models:
    """The models in use: replaced whole, so that a window sees one set and no mixture."""

    judges: tuple[ScoringModel, ...]
    reward: ScoringModel

    @property
    def all(self) -> tuple[ScoringModel, ...]:
        return (*self.judges, self.reward)

    def releases(self) -> dict[str, str]:
        return {model.name: model.bundle.digest for model in self.all}


class Panel:
    """Scores interactions with a set of bundles.

    A judge's probability is calibrated; the panel's is the mean of the judges' logits, turned
    back, so that one confident judge outweighs an undecided one. Disagreement is the largest
    difference between two judges' probabilities.
    """

    def __init__(
        self,
        models: _Models,
        config: ScoringConfig,
        observer: ScoringObserver,
        others: Sequence[Judge] = (),
    ) -> None:
        self._models = models
        self._others = others
        self._config = config
        self._observer = observer
        self._threads = config.threads or len(os.sched_getaffinity(0))
        self._executor = ThreadPoolExecutor(self._threads, thread_name_prefix="score")

    @classmethod
    def open(
        cls,
        harm: Sequence[Bundle],
        reward: Bundle,
        config: ScoringConfig | None = None,
        observer: ScoringObserver | None = None,
        others: Sequence[Judge] = (),
    ) -> Panel:
        """Load every model. `others` are judges without a bundle; the panel closes them.
        Raises BundleError or ProviderError; blocks for as long as the models take to load."""
        if not harm:
            raise BundleError("no judge: name at least one bundle of kind harm")
        config = config or ScoringConfig()
        names = [bundle.manifest.name for bundle in (*harm, reward)]
        names += [judge.name for judge in others]
        if len(set(names)) != len(names):
            raise BundleError(f"two models have one name among {', '.join(names)}; rename one")
        loaded: list[ScoringModel] = []
        for bundle in (*harm, reward):
            loaded.append(_load(bundle, config, loaded))
        models = _Models(tuple(loaded[:-1]), loaded[-1])
        return cls(models, config, observer or ScoringObserver(), others)

    @property
    def releases(self) -> Mapping[str, str]:
        """Name to digest, of the bundles and other judges in use now."""
        others = {judge.name: judge.digest for judge in self._others}
        return self._models.releases() | others

    @property
    def providers(self) -> Mapping[str, str]:
        """Model name to the execution provider it runs on."""
        return {model.name: model.provider for model in self._models.all}

    @property
    def dtypes(self) -> Mapping[str, str]:
        """Model name to the number type of what it gives, such as float32."""
        return {model.name: model.dtype for model in self._models.all}

    async def score(self, interactions: Sequence[Interaction]) -> list[Scores | ScoringError]:
        """One result per interaction, in order; a ScoringError where one could not be scored.

        All of a call is scored by the same models: a swap takes effect between calls.
        """
        models = self._models
        answers = [(item, item.response) for item in interactions]
        references = [
            (index, which, text)
            for index, item in enumerate(interactions)
            if item.reference is not None
            for which, text in (
                ("chosen", item.reference.chosen),
                ("rejected", item.reference.rejected),
            )
            if text is not None
        ]
        asked = [(interactions[index], text) for index, _, text in references]
        questions = [Question(models.reward, len(answers) + len(asked))]
        questions += [Question(judge, len(answers)) for judge in models.judges]
        rewards, *judged = await self._ask(questions, [*answers, *asked], self._observer)
        known: list[dict[str, Opinion | ScoringError]] = [{} for _ in interactions]
        for (index, which, _), value in zip(references, rewards[len(answers) :], strict=True):
            known[index][which] = value
        releases = models.releases()
        scores = [
            _combine(
                models,
                rewards[index],
                [values[index] for values in judged],
                known[index],
                releases,
            )
            for index in range(len(interactions))
        ]
        for judge in self._others:
            await _join(judge, interactions, scores)
        return scores

    async def _ask(
        self, questions: Sequence[Question], inputs: Sequence[Input], observer: ScoringObserver
    ) -> list[list[Opinion | ScoringError]]:
        return await ask(questions, inputs, self._executor, self._threads, observer)

    async def warm_up(self) -> None:
        """Score a dummy interaction through every model. Raises its ScoringError."""
        (result,) = await self.score([DUMMY])
        if isinstance(result, ScoringError):
            raise result

    async def swap(self, bundle: Bundle) -> None:
        """Replace the model of the bundle's name and kind. The new one is loaded and has scored
        a dummy before the next window sees it; the old one ends with the last window that holds
        it. Raises BundleError and leaves everything as it was when it cannot be used."""
        loop = asyncio.get_running_loop()
        beside = [item for item in self._models.all if item.name != bundle.manifest.name]
        model = await loop.run_in_executor(None, _load, bundle, self._config, beside)
        first = [(DUMMY, DUMMY.response)]
        ((opinion,),) = await self._ask([Question(model, 1)], first, ScoringObserver())
        if isinstance(opinion, ScoringError):
            raise BundleError(f"{bundle.path}: its first score failed: {opinion}")
        models = self._models
        if bundle.manifest.kind == "reward":
            if model.name != models.reward.name:
                raise BundleError(f"no reward model named {model.name}: {models.reward.name} is")
            self._models = _Models(models.judges, model)
            return
        names = [judge.name for judge in models.judges]
        if model.name not in names:
            raise BundleError(f"no judge named {model.name}; there are {', '.join(names)}")
        judges = tuple(model if judge.name == model.name else judge for judge in models.judges)
        self._models = _Models(judges, models.reward)

    async def aclose(self) -> None:
        """Wait for what runs, end the threads and close the judges without a bundle."""
        for judge in self._others:
            await judge.aclose()
        await asyncio.get_running_loop().run_in_executor(None, self._executor.shutdown)


def _load(bundle: Bundle, config: ScoringConfig, beside: Sequence[ScoringModel]) -> ScoringModel:
    """A model that shares its encoder with one of those beside it, where both read alike."""
    alike = (model.encoder for model in beside if reads(model.bundle) == reads(bundle))
    return ScoringModel(bundle, config.provider, next(alike, None), tf32=config.tf32)


def _combine(
    models: _Models,
    reward: Opinion | ScoringError,
    judged: Sequence[Opinion | ScoringError],
    references: Mapping[str, Opinion | ScoringError],
    releases: Mapping[str, str],
) -> Scores | ScoringError:
    if isinstance(reward, ScoringError):
        return reward
    judges: dict[str, float] = {}
    coverage: Coverage | None = None
    domain: DomainSign | None = None
    for judge, opinion in zip(models.judges, judged, strict=True):
        if isinstance(opinion, ScoringError):
            return opinion
        judges[judge.name] = opinion.value
        coverage = _covered(coverage, opinion)
        domain = _farther(domain, opinion)
    known: dict[str, float] = {}
    for which, opinion in references.items():
        if isinstance(opinion, ScoringError):
            return opinion
        known[which] = opinion.value
    return Scores(
        harm=_harm(judges, coverage, domain),
        reward=Reward.checked(
            score=reward.value,
            quantile=models.reward.quantile(reward.value),
            chosen=known.get("chosen"),
            rejected=known.get("rejected"),
            outlier=None if reward.domain is None else reward.domain.outside,
        ),
        releases=releases,
    )


def _covered(known: Coverage | None, opinion: Opinion) -> Coverage | None:
    if opinion.windows == 1 and not opinion.unread:
        return known
    if known is None:
        known = Coverage.checked(windows=1)
    return Coverage.checked(
        windows=max(known.windows, opinion.windows),
        encodings=tuple(sorted({*known.encodings, *opinion.encodings})),
        unread=max(known.unread, opinion.unread),
    )


def _farther(known: DomainSign | None, opinion: Opinion) -> DomainSign | None:
    if opinion.domain is None:
        return known
    found = DomainSign.checked(
        quantile=opinion.domain.quantile,
        unknown=opinion.domain.unknown,
        unseen_script=opinion.domain.unseen_script,
        outside=opinion.domain.outside,
    )
    if known is None:
        return found
    return max(known, found, key=lambda item: (item.outside, item.quantile))


def _harm(
    judges: Mapping[str, float], coverage: Coverage | None, domain: DomainSign | None
) -> Harm:
    """What several judges' calibrated probabilities come to."""
    values = list(judges.values())
    return Harm.checked(
        probability=pool(values),
        judges=judges,
        disagreement=max(values) - min(values),
        coverage=coverage,
        domain=domain,
    )


async def _join(
    judge: Judge, interactions: Sequence[Interaction], scores: list[Scores | ScoringError]
) -> None:
    """Ask a judge about the records it is for, and take what it says into their scores."""
    low, high = judge.doubt
    asked = [
        (place, item)
        for place, item in enumerate(scores)
        if isinstance(item, Scores) and low <= item.harm.probability <= high
    ]
    opinions = await judge.probabilities([interactions[place] for place, _ in asked])
    for (place, item), opinion in zip(asked, opinions, strict=True):
        if opinion is None:
            continue
        known = item.harm
        harm = _harm({**known.judges, judge.name: opinion}, known.coverage, known.domain)
        releases = {**item.releases, judge.name: judge.digest}
        scores[place] = replace(item, harm=harm, releases=releases)


def pool(probabilities: Sequence[float]) -> float:
    """Logarithmic opinion pool with equal weights (Genest and Zidek 1986)."""
    if len(probabilities) == 1:
        return probabilities[0]
    mean = float(np.mean(logit(np.asarray(probabilities))))
    return float(1.0 / (1.0 + np.exp(-mean)))
