"""The replayer: settings and options to a replay, from its ranges to its report.

Reads topics or archives and never writes to Kafka; joins no group.
"""

from __future__ import annotations

import asyncio
import os
import platform
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final, Literal

from ares_stream import __version__
from ares_stream.audit.archive import ArchiveReader
from ares_stream.audit.ranges import RangeReader, TopicReader
from ares_stream.audit.replay.comparing import Tolerance
from ares_stream.audit.replay.models import MadeWith, Named, Resources, WhatIf
from ares_stream.audit.replay.report import Circumstances, report
from ares_stream.audit.replay.run import Null, Progress, run_replay
from ares_stream.audit.replay.selecting import Names, select
from ares_stream.audit.replay.spec import Mode, ReplaySpec, Selection
from ares_stream.audit.replay.work import Work
from ares_stream.detection.decide import DetectionPolicy
from ares_stream.errors import DecodeError, ReadError, SettingsError
from ares_stream.models.bundles import Bundle, load_bundle
from ares_stream.models.signing import signed_by
from ares_stream.records import topics
from ares_stream.records.base import OffsetRange
from ares_stream.records.topics import topic_name
from ares_stream.scoring.judges import PhraseJudge, load_phrases
from ares_stream.scoring.panel import ScoringConfig
from ares_stream.scoring.runtime import PROVIDERS, version
from ares_stream.services.scorer import deadletters_of, inputs_of, outputs_of
from ares_stream.services.settings import Settings
from ares_stream.streaming.connection import KafkaConnection
from ares_stream.streaming.reader import ids_of
from ares_stream.streaming.records import InboundRecord, ReadLimits

SAMPLES: Final = (64, 512)
"""Offsets that are replayed to tell how long all would take."""


@dataclass(frozen=True, slots=True)
class ReplayOptions:
    """What the command line asks; see `ares replay --help`."""

    mode: Mode = "proof"
    archive: str | None = None
    since_ms: int | None = None
    until_ms: int | None = None
    offsets: tuple[OffsetRange, ...] = ()
    plan: str | None = None
    release: str | None = None
    bundles: tuple[Path, ...] = ()
    policies: tuple[DetectionPolicy, ...] = ()
    harm: tuple[Path, ...] = ()
    reward: Path | None = None
    policy: DetectionPolicy | None = None
    slices: tuple[str, ...] = ()
    tolerance: float = 1e-4
    provider: Literal["cpu", "cuda"] | None = None
    workers: int = 1
    part: tuple[int, int] = (0, 1)


def make_spec(
    settings: Settings, connection: KafkaConnection, options: ReplayOptions
) -> ReplaySpec:
    """What every worker gets. Raises SettingsError and BundleError for what cannot be used."""
    _check(options)
    scorer = settings.scorer
    signed = signed_by(scorer.public_key)
    configured = [load_bundle(path, "harm", signed) for path in scorer.harm]
    reward = None if scorer.reward is None else load_bundle(scorer.reward, "reward", signed)
    judges = [load_bundle(path, "harm", signed) for path in options.harm]
    other = None if options.reward is None else load_bundle(options.reward, "reward", signed)
    _refuse_namesakes([*judges, *(() if other is None else (other,))])
    paths = [*scorer.harm, *options.bundles, *options.harm]
    paths += [path for path in (scorer.reward, options.reward) if path is not None]
    phrases = None if scorer.phrases is None else load_phrases(scorer.phrases)
    given = () if options.policy is None else (options.policy,)
    resources = Resources(
        policies=(scorer.detection, *options.policies, *given),
        bundles=tuple(str(path.absolute()) for path in paths),
        registry=settings.registry.root,
        cache=str(scorer.release_cache),
        public_key=None if scorer.public_key is None else str(scorer.public_key),
        phrases=phrases,
        config=ScoringConfig(
            provider=options.provider or scorer.provider,
            # Workers are the parallelism: their threads would take cores from each other.
            threads=1 if options.workers > 1 else scorer.threads,
            tf32=scorer.tf32,
        ),
    )
    return ReplaySpec(
        mode=options.mode,
        source=connection if options.archive is None else options.archive,
        inputs=tuple(inputs_of(settings)),
        outputs=outputs_of(settings),
        deadletters=deadletters_of(settings),
        limits=scorer.limits,
        resources=resources,
        configured=_configured(configured, reward, phrases, scorer.detection),
        what_if=None
        if options.mode == "proof"
        else WhatIf(
            tuple(map(_named, judges)) or None,
            None if other is None else _named(other),
            options.policy,
        ),
        tolerance=Tolerance(options.tolerance),
        read=ReadLimits(
            record_bytes=scorer.processing.record_mebibytes << 20,
            batch_bytes=scorer.processing.batch_mebibytes << 20,
        ),
        slices=options.slices,
    )


def _check(options: ReplayOptions) -> None:
    others = options.harm or options.reward is not None or options.policy is not None
    if options.mode == "what-if" and not others:
        raise SettingsError("--mode what-if: name --harm, --reward or --policy, or several")
    if options.mode == "proof" and others:
        raise SettingsError(
            "--mode proof takes what the verdicts name: give --bundle and --policy-file where the "
            "registry and the settings do not have it"
        )
    index, of = options.part
    if not 0 <= index < of:
        raise SettingsError(f"--index {index} --of {of}: expected an index from 0 to {of - 1}")


def _refuse_namesakes(bundles: Sequence[Bundle]) -> None:
    """Before a month is read for them: a verdict names its models, so no two share a name."""
    names = [item.manifest.name for item in bundles]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise SettingsError(
            f"--harm, --reward: two bundles are named {', '.join(twice)}; name one of them, or "
            "give the other one another name"
        )


def _named(bundle: Bundle) -> Named:
    return bundle.manifest.name, bundle.digest


def _configured(
    judges: Sequence[Bundle],
    reward: Bundle | None,
    phrases: PhraseJudge | None,
    policy: DetectionPolicy,
) -> MadeWith | None:
    if not judges or reward is None:
        return None
    named = [_named(item) for item in judges]
    if phrases is not None:
        named.append((phrases.name, phrases.digest))
    return MadeWith(tuple(named), _named(reward), policy.digest)


def reader_of(spec: ReplaySpec) -> RangeReader:
    """Topics, or an archive."""
    if isinstance(spec.source, str):
        return ArchiveReader(spec.source)
    return TopicReader(spec.source, unreadable=_refuse)


def _refuse(record: InboundRecord, error: DecodeError) -> None:
    """What chooses offsets is read whole: one of them may be named by what cannot be read."""
    raise ReadError(
        f"{record.topic} {record.partition} offset {record.offset}: {error}; which records are "
        "meant cannot be told; name them with --offsets or times"
    )


async def choose(settings: Settings, spec: ReplaySpec, options: ReplayOptions) -> Selection:
    """The ranges, fixed now. Raises as `select` does."""
    outputs = (*spec.outputs.all, spec.deadletters)
    names = Names(
        inputs=tuple(item.topic for item in spec.inputs),
        outputs=outputs,
        verdicts=spec.outputs.verdicts,
        repairs=topic_name(settings.topic_prefix, topics.REPAIRS),
    )
    ids: Mapping[str, str] = {}
    if not isinstance(spec.source, str):
        ids = await ids_of(spec.source, (*names.inputs, *outputs))
    selection = await select(
        reader_of(spec),
        names,
        since_ms=options.since_ms,
        until_ms=options.until_ms,
        offsets=options.offsets,
        plan=options.plan,
        release=options.release,
    )
    return replace(selection, topic_ids=ids)


async def replay(
    settings: Settings,
    spec: ReplaySpec,
    options: ReplayOptions,
    folder: Path,
    *,
    progress: Progress = lambda stage, offsets: None,
    on_ranges: Callable[[Selection], None] = lambda selection: None,
    null: Null | None = None,
) -> dict[str, Any]:
    """Replay and report. What an earlier call left in the folder is not done again. Raises
    SettingsError also where another replay is at work in the folder."""
    started = datetime.now(UTC)
    work = Work(folder, spec.block)
    with work.held():
        selection = work.planned(spec, options.part)
        if selection is None:
            selection = await choose(settings, spec, options)
        on_ranges(selection)
        replayed = await asyncio.to_thread(
            run_replay, spec, selection, folder,
            workers=options.workers, part=options.part, progress=progress, null=null,
        )  # fmt: skip
    ran = Circumstances(
        started_at=started,
        finished_at=datetime.now(UTC),
        workers=options.workers,
        part=options.part,
        runtime=runtime(spec),
    )
    return report(spec, replayed, ran)


def runtime(spec: ReplaySpec) -> Mapping[str, str]:
    """What figures depend on beside models: CPUs of one kind give equal bits."""
    return {
        "ares_stream": __version__,
        "python": platform.python_version(),
        "onnxruntime": version(),
        "provider": PROVIDERS[spec.resources.config.provider],
        "tf32": str(spec.resources.config.tf32).lower(),
        "machine": platform.machine(),
        "processor": _processor(),
        "system": platform.system(),
    }


def _processor() -> str:
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return platform.processor() or "unknown"
    names = (line.partition(":")[2].strip() for line in text.splitlines() if "model name" in line)
    return next(names, platform.processor() or "unknown")


async def estimate(
    settings: Settings, spec: ReplaySpec, options: ReplayOptions, scratch: Path
) -> dict[str, Any]:
    """What a replay would read, about how many seconds it would take, and how many hours of one
    core: samples of the newest records are replayed with the models that the settings name. Both
    are None where they name none, or where there is nothing to sample."""
    selection = await choose(settings, spec, options)
    inputs = sum(item.end - item.start for item in selection.inputs)
    outputs = sum(item.end - item.start for item in selection.outputs)
    found: dict[str, Any] = {
        "schema": "ares.replay-estimate/1",
        "mode": spec.mode,
        "offsets": inputs,
        "output_offsets": outputs,
        "partitions": [item.model_dump() for item in selection.inputs],
        "sampled": 0,
        "seconds": None,
        "workers": options.workers,
        "core_hours": None,
    }
    what_if = spec.what_if
    made = spec.configured
    if spec.mode == "proof" and made is not None:
        policy = spec.resources.policies[0]
        what_if = WhatIf(judges=made.judges, reward=made.reward, policy=policy)
    if what_if is None or not inputs:
        return found
    sampling = replace(spec, mode="what-if", what_if=what_if)
    # Two sizes: models are opened once however much is replayed.
    few, many = [
        await asyncio.to_thread(_measured, sampling, _sample(selection, size), scratch / str(size))
        for size in SAMPLES
    ]
    found["sampled"] = many.records
    if many.offsets > few.offsets:
        more, offsets = many.offsets - few.offsets, inputs + outputs
        workers = min(options.workers, os.cpu_count() or 1)
        seconds = max(0.0, many.seconds - few.seconds) / more
        busy = max(0.0, many.core_seconds - few.core_seconds) / more
        found["seconds"] = round(few.seconds + seconds * offsets / workers, 1)
        found["core_hours"] = round((few.core_seconds * workers + busy * offsets) / 3600, 6)
    return found


@dataclass(frozen=True, slots=True)
class _Measured:
    """One sample: what it held and took."""

    records: int
    offsets: int
    seconds: float
    core_seconds: float


def _measured(spec: ReplaySpec, sample: Selection, folder: Path) -> _Measured:
    began, busy = time.perf_counter(), time.process_time()
    done = run_replay(spec, sample, folder)
    return _Measured(
        sum(item.records for item in done.results),
        sum(item.end - item.start for item in (*sample.inputs, *sample.outputs)),
        time.perf_counter() - began,
        time.process_time() - busy,
    )


def _sample(selection: Selection, size: int) -> Selection:
    """The newest offsets of the largest input, and of the largest output as many as belong to
    them."""

    def newest(ranges: Sequence[OffsetRange], size: int) -> tuple[OffsetRange, ...]:
        largest = max(ranges, key=lambda item: item.end - item.start)
        start = max(largest.start, largest.end - size)
        return (largest.model_copy(update={"start": start}),)

    inputs = sum(item.end - item.start for item in selection.inputs)
    outputs = sum(item.end - item.start for item in selection.outputs)
    share = -(-size * outputs // inputs)
    return replace(
        selection,
        inputs=newest(selection.inputs, size),
        outputs=newest(selection.outputs, share) if selection.outputs else (),
        only=None,
        open_ended=False,
    )
