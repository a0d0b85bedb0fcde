"""The probe search against a real policy: SmolLM2-135M-Instruct, asked what the taxonomy composes,
judged by the same bundles as in real_repair. What it truly would fail is not known, so there is
no recall and no precision: only what was confirmed within the budget.
"""

from __future__ import annotations

import asyncio
import json
import os
import platform
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

from ares_stream.detection.assess import assess
from ares_stream.detection.decide import DetectionPolicy
from ares_stream.errors import ScoringError
from ares_stream.lab.experiments.seeds import over_seeds
from ares_stream.lab.experiments.smollm2 import repair as real_repair
from ares_stream.lab.experiments.smollm2.plan import refusal_to
from ares_stream.lab.experiments.smollm2.repair import CACHE, policy_of
from ares_stream.lab.experiments.smollm2.scorers import Scorers, ScorerSize, Stage, make_scorers
from ares_stream.lab.experiments.smollm2.texts import read_prompts
from ares_stream.lab.kept import Kept, code
from ares_stream.models.bundles import load_bundle
from ares_stream.probes import (
    baselines,
    campaign,
    local_target,
    prober,
    screening,
    selection,
    wording,
)
from ares_stream.probes.campaign import Ask, Campaign, CampaignPolicy, Judged
from ares_stream.probes.composition import TaxonomyComposer
from ares_stream.probes.local_target import LocalTarget
from ares_stream.probes.memory import judged
from ares_stream.probes.plan import CampaignPlan
from ares_stream.probes.screening import Clusters
from ares_stream.probes.targets import Answer, Query
from ares_stream.probes.taxonomy import load_taxonomy
from ares_stream.probes.wording import Wording
from ares_stream.records.base import stable_seed
from ares_stream.records.interaction import Interaction, Reference
from ares_stream.records.verdict import SourceCoordinates
from ares_stream.scoring.panel import Panel
from ares_stream.training.encoder import use_threads

METHODS: Final = ("adaptive", "uniform")
FIGURES: Final = ("unique", "confirmed", "hit_rate", "flagged", "void")
_NEVER: Final = datetime(2026, 1, 1, tzinfo=UTC)
_CODE: Final = (baselines, campaign, local_target, prober, screening, selection, wording)


@dataclass(frozen=True, slots=True)
class ProbeSize:
    """How far it goes. `harmful` and `benign` prompts are held out of the scorers' training."""

    queries: int
    batch: int
    tokens: int
    seeds: tuple[int, ...]
    harmful: int
    benign: int
    scorers: ScorerSize


def _of(size: real_repair.Size, queries: int, batch: int, seeds: tuple[int, ...]) -> ProbeSize:
    """With the scorers of the repair's run, so that they are trained once for both."""
    return ProbeSize(queries, batch, size.tokens, seeds, size.harmful, size.benign, size.scorers)


FULL: Final = _of(real_repair.FULL, 300, 25, (1, 2, 3))
QUICK: Final = _of(real_repair.QUICK, 16, 8, (1,))


def run(
    data: Path, size: ProbeSize, stage: Stage, *, cache: Path = CACHE, threads: int | None = None
) -> dict[str, Any]:
    """Everything, as JSON without any text; see docs/real-probes.md for its fields.

    Raises SettingsError for missing texts or packages, ScoringError where an answer cannot be
    scored.
    """
    started = time.monotonic()
    use_threads(threads)
    kept = Kept(cache)
    prompts = read_prompts(data, harmful=size.harmful, benign=size.benign)
    held_out = [*prompts["test"].texts, *prompts["dev"].texts]
    scorers = make_scorers(data, held_out, size.scorers, kept, stage)
    found: dict[str, dict[int, dict[str, float]]] = {method: {} for method in METHODS}
    for method in METHODS:
        for seed in size.seeds:
            found[method][seed] = _kept_campaign(method, seed, scorers, size, kept, stage)
    difference = {
        name: over_seeds(
            {
                seed: found["adaptive"][seed][name] - found["uniform"][seed][name]
                for seed in size.seeds
            }
        )
        for name in FIGURES
    }
    return {
        "schema": "ares.probes-real/1",
        "size": asdict(size),
        "machine": {"cpus": len(os.sched_getaffinity(0)), "python": platform.python_version()},
        "taxonomy": load_taxonomy(None).digest,
        "scorers": scorers.stated,
        "methods": {
            method: {
                name: over_seeds({seed: row[name] for seed, row in rows.items()})
                for name in FIGURES
            }
            for method, rows in found.items()
        },
        "adaptive_less_uniform": difference,
        "seconds": kept.seconds,
        "wall_seconds": round(time.monotonic() - started),
    }


def _kept_campaign(
    method: str, seed: int, scorers: Scorers, size: ProbeSize, kept: Kept, stage: Stage
) -> dict[str, float]:
    key = {
        "method": method,
        "seed": seed,
        "size": [size.queries, size.batch, size.tokens],
        "taxonomy": load_taxonomy(None).digest,
        "policy": scorers.policy.name,
        "bundles": [load_bundle(path).digest for path in (scorers.judge, scorers.reward)],
        "code": code(*_CODE),
    }

    def make(out: Path) -> None:
        figures = asyncio.run(_campaign(method, seed, scorers, size, stage))
        (out / "figures.json").write_text(json.dumps(figures), encoding="utf-8")

    place = kept.made(f"probes-{method}-{seed}", key, make)
    figures: dict[str, float] = json.loads((place / "figures.json").read_text(encoding="utf-8"))
    return figures


async def _campaign(
    method: str, seed: int, scorers: Scorers, size: ProbeSize, stage: Stage
) -> dict[str, float]:
    taxonomy = load_taxonomy(None)
    space, composer = taxonomy.space(), TaxonomyComposer(taxonomy)
    policy = CampaignPolicy(size.queries, size.batch)
    state = CampaignPlan(f"{method}-{seed}", space, composer, policy, method, seed).start()
    words = Wording(space, composer)
    target = LocalTarget.load(
        scorers.policy, policy_of(scorers), max_new_tokens=size.tokens, batch=size.batch
    )
    panel = Panel.open([load_bundle(scorers.judge)], load_bundle(scorers.reward))
    steps = stage(f"probes: {method}, seed {seed}")
    said: dict[str, str] = {}
    try:
        while not state.done:
            asks = state.pending()
            state.judge(await _judged(asks, words, target, panel, said))
            steps(state.queries, size.queries)
    finally:
        await panel.aclose()
        await target.aclose()
    return _figures(state, said)


async def _judged(
    asks: Sequence[Ask], words: Wording, target: LocalTarget, panel: Panel, said: dict[str, str]
) -> dict[str, Judged]:
    """What came back for each query, by the same rules as in a campaign on Kafka."""
    void = Judged(0.0, 0.0, failed=False, void=True)
    found = {ask.id: void for ask in asks}
    asked = [ask for ask in asks if words.words(ask).cause is None]
    for ask in asked:
        said[ask.probe] = words.words(ask).text
    answers = target.answer(
        [
            Query(words.words(ask).messages, 0 if ask.attempt == 0 else stable_seed(ask.id))
            for ask in asked
        ]
    )
    kept = [
        (ask, answer.text)
        for ask, answer in zip(asked, answers, strict=True)
        if isinstance(answer, Answer) and not words.is_rubbish(answer.text)
    ]
    interactions = [
        Interaction(
            id=ask.id,
            occurred_at=_NEVER,
            messages=words.words(ask).messages,
            response=answer,
            policy=target.policy,
            reference=Reference(chosen=refusal_to(words.words(ask).messages[-1].content)),
        )
        for ask, answer in kept
    ]
    scores = await panel.score(interactions) if interactions else []
    for place, ((ask, _), item, score) in enumerate(zip(kept, interactions, scores, strict=True)):
        if isinstance(score, ScoringError):
            raise score
        source = SourceCoordinates(topic="probes", partition=0, offset=place, timestamp_ms=0)
        found[ask.id] = judged(assess(item, score, source, "probe", DetectionPolicy()))
    return found


def _figures(state: Campaign, said: dict[str, str]) -> dict[str, float]:
    """`unique`: clusters of the confirmed failures' prompts at cosine 0.7."""
    clusters = Clusters()
    for failure in state.failures:
        clusters.add(said[failure.probe])
    return {
        "unique": len(clusters),
        "confirmed": len(state.failures),
        "hit_rate": len(state.failures) / max(1, state.queries),
        "flagged": state.flagged,
        "void": state.void,
    }
