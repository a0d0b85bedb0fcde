"""A candidate's forecast by what the settings name: topics, judges, registry, the policy's base.

registry ─► candidate ─► forecast of production ─► registry, releases topic
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Final

from ares_stream.audit.forecast import ForecastError, errors_of
from ares_stream.audit.ranges import RangeReader
from ares_stream.audit.sampling import PromptSample
from ares_stream.audit.simulate import Candidate, Production, Progress, Survey, simulate, survey
from ares_stream.detection.refusals import REFUSAL
from ares_stream.errors import RegistryError, SettingsError
from ares_stream.models.bundles import Bundle, load_bundle
from ares_stream.models.releases import Log
from ares_stream.models.signing import signed_by
from ares_stream.models.store import ReleaseStore
from ares_stream.probes.targets import Target
from ares_stream.records import topics
from ares_stream.records.forecast import Forecast
from ares_stream.records.interaction import Policy
from ares_stream.records.rates import Rates
from ares_stream.records.release import Release, ReleaseState
from ares_stream.records.topics import topic_name
from ares_stream.scoring.judges import Judge, load_phrases
from ares_stream.scoring.panel import Panel, ScoringConfig
from ares_stream.services.settings import Settings

VERSION_DIGITS: Final = 12
"""Of an adapter's digest: the version under which it is served where no other is named."""


@dataclass(frozen=True, slots=True)
class Request:
    """Which production, how much of it, and how the candidate is asked."""

    since_ms: int | None = None
    until_ms: int | None = None
    by: tuple[str, ...] = ()
    """Attributes to slice by; of each combination of their values `each` prompts are drawn."""
    each: int = 400
    seed: int = 0
    serves: Policy | None = None
    """Name and version under which the candidate will answer in production."""
    base: Path | None = None
    """The policy's checkpoint, for the candidate's adapter; repairer.recipe.policy by default."""
    max_tokens: int = 256
    temperature: float = 0.7
    batch: int = 16
    """Prompts generated together by a local model."""
    answers: Path | None = None
    """Where answers are kept through a kill."""


@dataclass(frozen=True, slots=True)
class Models:
    """A candidate and what it would join."""

    adapter: Path | None
    present: tuple[tuple[Bundle, ...], Bundle]
    candidate: tuple[tuple[Bundle, ...], Bundle]
    serves: Policy
    """By the digest of its adapter, or what is served now."""


def production_topics(settings: Settings) -> dict[str, object]:
    """Topics of the production lane, each with its mapping or None."""
    inputs = [item for item in settings.scorer.inputs if item.lane == "production"]
    if inputs:
        return {item.topic: item.map for item in inputs}
    if settings.scorer.inputs:
        raise SettingsError("scorer.inputs: none is of the lane production, which is forecast")
    return {topic_name(settings.topic_prefix, topics.PRODUCTION): None}


async def read_production(
    settings: Settings, reader: RangeReader, request: Request, progress: Progress
) -> tuple[Production, Survey]:
    """Read the range once and draw the sample. Raises as `survey` does."""
    maps = production_topics(settings)
    ranges = await reader.snapshot(list(maps), since_ms=request.since_ms)
    production = Production(
        ranges,
        request.until_ms,
        maps,  # type: ignore[arg-type]
        settings.scorer.limits,
    )
    sample = PromptSample(request.by, request.each, request.seed)
    return production, await survey(reader, production, sample, progress)


def models_of(settings: Settings, store: ReleaseStore, selector: str, cache: Path) -> Models:
    """The candidates that are meant, and the models they would join.

    Raises RegistryError for what is no candidate, SettingsError where the settings name no judge
    or reward model, BundleError for what cannot be loaded.
    """
    log = store.log()
    chosen = log.select(selector)
    for item in chosen:
        if item.state is not ReleaseState.CANDIDATE:
            raise RegistryError(
                f"{item.model} {item.digest[:12]}: is {item.state.value}; only a candidate gets a "
                "forecast"
            )
    scorer = settings.scorer
    if not scorer.harm or scorer.reward is None:
        raise SettingsError("scorer.harm, scorer.reward: name the judges and the reward model")
    key = scorer.public_key
    configured = [load_bundle(path, "harm", signed_by(key)) for path in scorer.harm]
    configured.append(load_bundle(scorer.reward, "reward", signed_by(key)))
    present = [_active(bundle, log, store, settings, cache) for bundle in configured]
    candidate, adapter = list(present), None
    serves = Policy(name=settings.repairer.policy_model, version="unknown")
    for item in chosen:
        path = store.fetch(item, cache)
        if item.kind == "policy":
            adapter = path
            serves = Policy(name=item.model, version=item.digest[:VERSION_DIGITS])
            continue
        bundle = load_bundle(path, item.kind, signed_by(key))
        names = [other.manifest.name for other in candidate]
        if item.model not in names:
            raise RegistryError(
                f"{item.model}: the scorer runs no model of this name; it runs {', '.join(names)}"
            )
        candidate[names.index(item.model)] = bundle
    return Models(
        adapter,
        (tuple(present[:-1]), present[-1]),
        (tuple(candidate[:-1]), candidate[-1]),
        serves,
    )


def _active(
    bundle: Bundle, log: Log, store: ReleaseStore, settings: Settings, cache: Path
) -> Bundle:
    """What the scorer runs in the place of a configured bundle."""
    release = log.active(bundle.manifest.name) if settings.scorer.follow_releases else None
    if release is None or release.kind != bundle.manifest.kind or release.digest == bundle.digest:
        return bundle
    path = store.fetch(release, cache)
    return load_bundle(path, release.kind, signed_by(settings.scorer.public_key))


def local_target(settings: Settings, models: Models, request: Request) -> Target | None:
    """The candidate's adapter on the policy's base, on this machine; None where no policy is among
    the candidates. Raises SettingsError."""
    if models.adapter is None:
        return None
    recipe = settings.repairer.recipe
    base = request.base or (recipe.policy if recipe is not None else None)
    if base is None:
        raise SettingsError(
            "--base: the candidate is an adapter; name the policy's checkpoint, or an endpoint "
            "that serves it (--target)"
        )
    from ares_stream.probes.local_target import LocalTarget

    return LocalTarget.load(
        base,
        models.serves,
        adapter=models.adapter,
        max_new_tokens=request.max_tokens,
        temperature=request.temperature,
        batch=request.batch,
    )


async def make_forecast(
    settings: Settings,
    models: Models,
    target: Target | None,
    production: Production,
    found: Survey,
    request: Request,
    made_at: datetime,
    progress: Progress,
) -> Forecast:
    """Answer and score. A constitution judge is not asked: its opinions cost, and are few."""
    asked = settings.scorer
    config = ScoringConfig(asked.provider, asked.threads, asked.tf32)

    def opened(bundles: tuple[tuple[Bundle, ...], Bundle]) -> Panel:
        others: list[Judge] = []
        if settings.scorer.phrases is not None:
            others.append(load_phrases(settings.scorer.phrases))
        return Panel.open(*bundles, config, None, others)

    present = await asyncio.to_thread(opened, models.present)
    scorer = present
    try:
        if models.candidate != models.present:
            scorer = await asyncio.to_thread(opened, models.candidate)
        serves = request.serves or (target.policy if target is not None else models.serves)
        candidate = Candidate(serves, target, scorer, present)
        recipe = settings.repairer.recipe
        return await simulate(
            found,
            production.ranges,
            candidate,
            by=request.by,
            seed=request.seed,
            made_at=made_at,
            detection=settings.scorer.detection,
            refusal=REFUSAL if recipe is None else recipe.refusal,
            progress=progress,
        )
    finally:
        for panel in {id(item): item for item in (present, scorer)}.values():
            await panel.aclose()


def forecast_errors(log: Log, rates: Sequence[Rates]) -> list[tuple[Release, list[ForecastError]]]:
    """Every release that had a forecast and has answered in production, newest first, with how far
    off it was. What was repaired together is told once, by its policy where there is one."""
    told: dict[str, tuple[Release, list[ForecastError]]] = {}
    for item in sorted(log.releases, key=lambda row: row.kind != "policy"):
        if item.forecast is None or item.state in (ReleaseState.CANDIDATE, ReleaseState.REJECTED):
            continue
        if errors := errors_of(item.forecast, rates):
            told.setdefault(item.plan_id or item.digest, (item, errors))
    return sorted(told.values(), key=lambda row: row[0].changed_at, reverse=True)


def as_json(rows: Sequence[tuple[Release, Sequence[ForecastError]]]) -> Mapping[str, object]:
    """The errors as a JSON-ready document."""
    return {
        "schema": "ares.forecast-errors/1",
        "releases": [
            {
                "model": release.model,
                "digest": release.digest,
                "plan_id": release.plan_id,
                "errors": [error.document() for error in errors],
            }
            for release, errors in rows
        ],
    }
