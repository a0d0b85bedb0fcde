"""`ares release`: see, approve, reject and take back releases."""

from __future__ import annotations

import asyncio
import getpass
import json
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ares_stream.cli.options import SettingsFile

if TYPE_CHECKING:
    from ares_stream.models.releases import Author, Log
    from ares_stream.models.store import ReleaseStore
    from ares_stream.records.release import Release
    from ares_stream.services.settings import Settings

app = typer.Typer(no_args_is_help=True, help="See, approve, reject and take back releases.")

Json = Annotated[bool, typer.Option("--json", help="JSON on stdout.")]
Selector = Annotated[
    str, typer.Argument(help="A plan's id, or the first 8 or more digits of a digest.")
]
By = Annotated[str | None, typer.Option(help="Who decides; the user's name by default.")]
Reason = Annotated[str, typer.Option(help="Why; kept with the release.")]
Offline = Annotated[
    bool, typer.Option("--offline", help="Change the registry only; announce later.")
]


def _registry(file: Path | None) -> tuple[Settings, ReleaseStore]:
    from ares_stream.services.settings import load_settings

    settings = load_settings(file)
    return settings, settings.registry.store()


def _place(root: str) -> str:
    """A path in full: a relative one is another folder wherever one stands."""
    return root if "://" in root else str(Path(root).absolute())


def _author(by: str | None, reason: str) -> Author:
    from ares_stream.models.releases import Author

    return Author(by or getpass.getuser(), datetime.now(UTC), reason)


@app.command("list")
def list_releases(settings: SettingsFile = None, as_json: Json = False) -> None:
    """Every release in its present state. Exits 0."""
    found, registry = _registry(settings)
    log = registry.log()
    if as_json:
        rows = [item.model_dump(mode="json", exclude_none=True) for item in log.releases]
        typer.echo(json.dumps({"releases": rows}, indent=2))
        return
    for item in log.releases:
        typer.echo(_line(item))
    if not log.releases:
        typer.echo(
            f"no releases yet in {_place(found.registry.root)} (registry.root of --settings)"
        )


@app.command()
def show(selector: Selector, settings: SettingsFile = None, as_json: Json = False) -> None:
    """One release, or those of a plan, with their history; the files are verified.

    Exits 0, or 2 when a file is not that of the digest.
    """
    from ares_stream.audit.forecast import forecast_lines

    registry = _registry(settings)[1]
    log = registry.log()
    found = log.select(selector)
    for item in found:
        registry.verify(item)
    history = [
        step
        for steps in log.steps
        for step in steps
        if any((step.model, step.digest) == (item.model, item.digest) for item in found)
    ]
    if as_json:
        rows = [item.model_dump(mode="json", exclude_none=True) for item in history]
        typer.echo(json.dumps({"verified": True, "history": rows}, indent=2))
        return
    for item in found:
        typer.echo(f"{item.model} ({item.kind})")
        typer.echo(f"  digest    {item.digest} (verified)")
        typer.echo(f"  files     {item.uri}")
        typer.echo(f"  plan      {item.plan_id or '-'}")
        typer.echo(f"  previous  {item.previous or '-'}")
        for line in () if item.forecast is None else forecast_lines(item.forecast):
            typer.echo(f"  {line}")
        for step in history:
            if (step.model, step.digest) == (item.model, item.digest):
                why = f": {step.reason}" if step.reason else ""
                typer.echo(
                    f"  {step.changed_at:%Y-%m-%d %H:%M:%S}  {step.state.value} "
                    f"by {step.changed_by}{why}"
                )


@app.command()
def add(
    path: Annotated[Path, typer.Argument(help="A bundle's directory, or a PEFT adapter's.")],
    kind: Annotated[str, typer.Option(help="harm, reward or policy.")],
    model: Annotated[
        str | None, typer.Option(help="The model's name; a bundle's own by default.")
    ] = None,
    by: By = None,
    reason: Reason = "",
    settings: SettingsFile = None,
    offline: Offline = False,
) -> None:
    """Propose a model that no repair made: it becomes a candidate. Exits 0 or 2."""
    from ares_stream.errors import SettingsError
    from ares_stream.models.bundles import load_bundle
    from ares_stream.models.store import Artefact

    if kind not in ("harm", "reward", "policy"):
        raise SettingsError(f"--kind {kind}: expected harm, reward or policy")
    if model is None:
        if kind == "policy":
            raise SettingsError("--model: a policy's adapter needs its model's name")
        model = load_bundle(path).manifest.name
    artefact = Artefact(model, kind, path)  # type: ignore[arg-type]
    author = _author(by, reason)
    _step(settings, offline, lambda registry: registry.propose([artefact], author))


@app.command()
def approve(
    selector: Selector,
    by: By = None,
    reason: Reason = "",
    settings: SettingsFile = None,
    offline: Offline = False,
) -> None:
    """Make a candidate active, with those of its plan, and announce it.

    Exits 0; 1 when its state does not allow it; 2 when its files changed; 3 when Kafka or the
    policy server cannot be told (`ares release announce` tells them later).
    """
    author = _author(by, reason)
    _step(settings, offline, lambda registry: registry.approve(selector, author))


@app.command()
def reject(
    selector: Selector,
    by: By = None,
    reason: Reason = "",
    settings: SettingsFile = None,
    offline: Offline = False,
) -> None:
    """Refuse a candidate for good, with those of its plan. Exit codes as for approve."""
    author = _author(by, reason)
    _step(settings, offline, lambda registry: registry.reject(selector, author))


@app.command()
def rollback(
    model: Annotated[str, typer.Argument(help="The model whose active release is taken back.")],
    by: By = None,
    reason: Reason = "",
    settings: SettingsFile = None,
    offline: Offline = False,
) -> None:
    """Make the previous release active again, for every model of the same plan.

    Exit codes as for approve.
    """
    author = _author(by, reason)
    _step(settings, offline, lambda registry: registry.rollback(model, author))


@app.command()
def announce(settings: SettingsFile = None) -> None:
    """Tell the releases topic and the policy server again what the registry says. Exits 0 or 3."""
    loaded, registry = _registry(settings)
    _announce(loaded, registry.log())


def _step(
    file: Path | None, offline: bool, take: Callable[[ReleaseStore], tuple[Release, ...]]
) -> None:
    settings, registry = _registry(file)
    for item in take(registry):
        typer.echo(_line(item))
    if not offline:
        _announce(settings, registry.log())


def _announce(settings: Settings, log: Log) -> None:
    from ares_stream.models.announcing import announce_topic
    from ares_stream.models.policy_server import announce_policies
    from ares_stream.records import topics
    from ares_stream.records.topics import topic_name

    topic = topic_name(settings.topic_prefix, topics.RELEASES)

    async def tell() -> None:
        count = await announce_topic(settings.kafka, topic, log)
        typer.echo(f"announced: {count} records to {topic}")
        if settings.registry.policy_server is not None:
            for line in await announce_policies(settings.registry.policy_server, log):
                typer.echo(f"policy server: {line}")

    asyncio.run(tell())


def _line(item: Release) -> str:
    return (
        f"{item.state.value:<11} {item.kind:<6} {item.model:<24} {item.digest[:12]} "
        f"plan {item.plan_id[:12] if item.plan_id else '-':<12} "
        f"{item.changed_at:%Y-%m-%d %H:%M} {item.changed_by}"
    )
