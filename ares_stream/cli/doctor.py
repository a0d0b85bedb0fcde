"""`ares doctor`: is this machine, and what the settings name, fit to run?"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from ares_stream.cli.options import SettingsFile

if TYPE_CHECKING:
    from ares_stream.services.settings import Settings

State = Literal["ok", "note", "fail"]
GIB = 1 << 30
LEAST_DISK = 2 * GIB
"""A scorer's log and release cache; a repair's checkpoints need more."""
CLOCK_SECONDS = 10.0
"""Producers whose clocks run ahead by more make time windows lie."""


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was looked at, and what to do where it is not as it should be."""

    what: str
    state: State
    text: str


def command(
    settings_file: SettingsFile = None,
    as_json: Annotated[bool, typer.Option("--json", help="JSON on stdout.")] = False,
) -> None:
    """Look at Python, cores, disk, provider, broker, topics, clocks and bundles.

    Changes nothing. Exits 0 when all that the settings name can be used, else 1; 2 when the
    settings cannot be read.
    """
    from ares_stream.services.settings import load_settings

    settings = load_settings(settings_file)
    found = []
    for finding in _findings(settings):
        found.append(finding)
        if not as_json:
            typer.echo(f"{finding.state:4}  {finding.what:12}  {finding.text}")
    if as_json:
        document = {"schema": "ares.doctor/1", "findings": [asdict(item) for item in found]}
        typer.echo(json.dumps(document, indent=2))
    if any(item.state == "fail" for item in found):
        raise typer.Exit(1)


def _findings(settings: Settings) -> Iterator[Finding]:
    yield from _machine()
    yield _provider(settings)
    yield from _bundles(settings)
    yield from _kafka(settings)


def _machine() -> Iterator[Finding]:
    import os
    import platform
    import shutil
    from importlib.util import find_spec

    from ares_stream import __version__

    yield Finding("python", "ok", f"{platform.python_version()}, ares-stream {__version__}")
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    yield Finding("cores", "ok", f"{cores}")
    free = shutil.disk_usage(".").free
    yield Finding(
        "disk",
        "ok" if free >= LEAST_DISK else "fail",
        f"{free / GIB:.1f} GiB free in {Path.cwd()}"
        + ("" if free >= LEAST_DISK else f"; {LEAST_DISK // GIB} are needed: free some"),
    )
    if not os.access(".", os.W_OK):
        yield Finding("disk", "fail", f"{Path.cwd()} cannot be written; start elsewhere")
    for extra, module, needed in (
        ("repair", "torch", "exporting, training and repairing"),
        ("broker", "jgo", "`ares broker` and `ares demo`"),
    ):
        there = find_spec(module) is not None
        text = f"for {needed}: " + ("installed" if there else "not installed")
        yield Finding(f"[{extra}]", "ok" if there else "note", text)


def _provider(settings: Settings) -> Finding:
    name = settings.scorer.provider
    try:
        from ares_stream.scoring.runtime import PROVIDERS, available_providers
    except ImportError:
        text = "onnxruntime is not installed: pip install 'ares-stream[cpu]', or [gpu]"
        return Finding("provider", "fail", text)
    if PROVIDERS[name] in available_providers():
        return Finding("provider", "ok", PROVIDERS[name])
    text = f"no {PROVIDERS[name]} here; install the extra `gpu`, or set scorer.provider: cpu"
    return Finding("provider", "fail", text)


def _bundles(settings: Settings) -> Iterator[Finding]:
    from ares_stream.errors import AresError
    from ares_stream.models.bundles import Bundle, Kind, load_bundle, refuse_shared_lineage
    from ares_stream.models.signing import signed_by

    scorer = settings.scorer
    loaded: dict[str, list[Bundle]] = {"harm": [], "reward": []}
    named: list[tuple[Kind, Path]] = [("harm", path) for path in scorer.harm]
    named += [("reward", scorer.reward)] if scorer.reward else []
    for kind, path in named:
        try:
            bundle = load_bundle(path, kind, signed_by(scorer.public_key))
        except AresError as error:
            yield Finding("bundle", "fail", str(error))
            continue
        loaded[kind].append(bundle)
        yield Finding("bundle", "ok", f"{path}: {kind}, {bundle.digest[:12]}")
    if not named:
        yield Finding("bundle", "note", "none in the settings: scorer.harm, scorer.reward")
    if loaded["harm"] and loaded["reward"] and not scorer.allow_shared_lineage:
        try:
            refuse_shared_lineage(loaded["harm"], loaded["reward"][0])
        except AresError as error:
            yield Finding("bundle", "fail", str(error))


def _kafka(settings: Settings) -> Iterator[Finding]:
    from ares_stream.errors import AresError
    from ares_stream.streaming.admin import count_brokers

    connection = settings.kafka
    try:
        brokers = asyncio.run(count_brokers(connection, seconds=10))
    except AresError as error:
        yield Finding("broker", "fail", f"{error}; `ares broker --port 9092` runs one here")
        return
    yield Finding("broker", "ok", f"{brokers} at {connection.bootstrap}")
    looks: tuple[tuple[str, Callable[[Settings, int], Finding]], ...] = (
        ("topics", _topics),
        ("clocks", _clocks),
    )
    for what, look in looks:
        try:
            yield look(settings, brokers)
        except AresError as error:
            yield Finding(what, "fail", str(error))


def _topics(settings: Settings, brokers: int) -> Finding:
    from ares_stream.records.topics import REPLICATION, compare, specs
    from ares_stream.streaming.admin import describe_topics

    wanted = specs(settings.topic_prefix, partitions=1, replication=min(REPLICATION, brokers))
    names = [spec.name for spec in wanted] + [item.topic for item in settings.scorer.inputs]
    actual = asyncio.run(describe_topics(settings.kafka, names))
    missing = [name for name in names if name not in actual]
    if missing:
        text = f"missing: {', '.join(missing)}; `ares topics create` makes ours, with --topic yours"
        return Finding("topics", "fail", text)
    differences = compare(wanted, actual)
    if differences:
        more = f" (and {len(differences) - 1} more)" if len(differences) > 1 else ""
        return Finding("topics", "note", f"{differences[0]}{more}; see `ares topics check`")
    return Finding("topics", "ok", f"{len(names)} as they should be")


def _clocks(settings: Settings, brokers: int) -> Finding:
    """Records of the input topics that are from the future here."""
    import time

    from ares_stream.records import topics
    from ares_stream.records.topics import topic_name
    from ares_stream.streaming.admin import describe_topics
    from ares_stream.streaming.reader import snapshot

    names = [item.topic for item in settings.scorer.inputs] or [
        topic_name(settings.topic_prefix, name) for name in (topics.PRODUCTION, topics.PROBE)
    ]
    there = list(asyncio.run(describe_topics(settings.kafka, names)))
    if not there:
        return Finding("clocks", "note", "no input topic to compare with")
    ahead = int((time.time() + CLOCK_SECONDS) * 1000)
    ranges = asyncio.run(snapshot(settings.kafka, there, since_ms=ahead))
    count = sum(item.end - item.start for item in ranges)
    if count:
        text = f"{count} records of the inputs are from the future here: a producer's clock or "
        return Finding("clocks", "note", text + "this machine's is wrong; compare them with NTP")
    return Finding("clocks", "ok", "no record of the inputs is from the future here")
