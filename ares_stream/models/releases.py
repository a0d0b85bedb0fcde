"""The log of releases and the steps that it allows. Pure: no file, no clock.

    candidate ──► active ──► superseded ──► active (when its successor is rolled back)
        │            └─────► rolled_back
        └──► rejected

A candidate's forecast is a step too, which leaves it a candidate.

A step moves one or more releases at once, so that a policy adapter and the reward model that were
repaired together are promoted together or not at all. Every function that makes a step refuses
what the present state does not allow with RegistryError.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final, Literal

from ares_stream.errors import DecodeError, RegistryError
from ares_stream.records.forecast import Forecast
from ares_stream.records.release import Release, ReleaseState

ReleaseKind = Literal["harm", "reward", "policy"]
Step = tuple[Release, ...]
_SELECTOR: Final = re.compile(r"[0-9a-f]{8,64}")
_LEGAL: Final = frozenset(
    {
        (None, ReleaseState.CANDIDATE),
        (ReleaseState.CANDIDATE, ReleaseState.ACTIVE),
        (ReleaseState.CANDIDATE, ReleaseState.REJECTED),
        (ReleaseState.ACTIVE, ReleaseState.SUPERSEDED),
        (ReleaseState.ACTIVE, ReleaseState.ROLLED_BACK),
        (ReleaseState.SUPERSEDED, ReleaseState.ACTIVE),
    }
)

_ENDED: Final = frozenset({ReleaseState.REJECTED, ReleaseState.ROLLED_BACK})


@dataclass(frozen=True, slots=True)
class Author:
    """Who takes a step, when and why. `at` carries a time zone."""

    name: str
    at: datetime
    reason: str = ""


@dataclass(frozen=True, slots=True)
class StoredArtefact:
    """Files that lie in the store: whose, of what kind, with which digest, where."""

    model: str
    kind: ReleaseKind
    digest: str
    uri: str


@dataclass(frozen=True, slots=True)
class Log:
    """Every step until now, and the present state of each release."""

    steps: tuple[Step, ...]
    last: str | None
    """SHA-256 of the last step's file."""

    @property
    def releases(self) -> tuple[Release, ...]:
        """Each release in its present state, in the order in which they were proposed."""
        latest: dict[tuple[str, str], Release] = {}
        for step in self.steps:
            for release in step:
                latest[release.model, release.digest] = release
        return tuple(latest.values())

    def active(self, model: str) -> Release | None:
        """The active release of a model, if there is one."""
        for release in self.releases:
            if release.model == model and release.state is ReleaseState.ACTIVE:
                return release
        return None

    def find(self, model: str, digest: str) -> Release | None:
        """The release with this digest."""
        for release in self.releases:
            if (release.model, release.digest) == (model, digest):
                return release
        return None

    def select(self, selector: str) -> tuple[Release, ...]:
        """The releases of a plan, or the one whose digest starts with `selector`, together with
        those of its plan: what was repaired together is decided together.

        Raises RegistryError when nothing or more than one thing is meant.
        """
        together = tuple(item for item in self.releases if item.plan_id == selector)
        if together:
            return together
        if not _SELECTOR.fullmatch(selector):
            raise RegistryError(
                f"{selector}: neither a plan's id nor 8 to 64 hexadecimal digits of a digest; "
                "`ares release list` shows both"
            )
        found = [item for item in self.releases if item.digest.startswith(selector)]
        if len(found) != 1:
            raise RegistryError(
                f"{selector}: {len(found) or 'no'} releases have a digest that starts so; "
                "`ares release list` shows them"
            )
        plan = found[0].plan_id
        if plan is None:
            return (found[0],)
        return tuple(item for item in self.releases if item.plan_id == plan)


def proposal(
    log: Log,
    artefacts: Sequence[StoredArtefact],
    author: Author,
    *,
    plan_id: str | None = None,
    gate_report: str | None = None,
    against: Mapping[str, str | None] | None = None,
) -> Step:
    """Candidates of those artefacts that are no releases of this plan yet. `against` maps a model
    to the digest of the release that its gate compared it with, by default the active one."""
    step: list[Release] = []
    for item in artefacts:
        known = log.find(item.model, item.digest)
        if known is not None and known.plan_id == plan_id:
            continue
        if known is not None:
            raise RegistryError(
                f"{item.model} {item.digest[:12]}: exists already, {known.state.value} since "
                f"{known.changed_at:%Y-%m-%d}; the same files cannot be another release"
            )
        active = log.active(item.model)
        previous = active.digest if active else None
        if against is not None:
            previous = against[item.model]
        if active is not None and active.kind != item.kind:
            raise RegistryError(
                f"{item.model}: its releases are of kind {active.kind}, not {item.kind}"
            )
        step.append(
            Release(
                model=item.model,
                kind=item.kind,
                digest=item.digest,
                uri=item.uri,
                state=ReleaseState.CANDIDATE,
                changed_at=author.at,
                changed_by=author.name,
                reason=author.reason,
                plan_id=plan_id,
                gate_report=gate_report,
                previous=previous,
            )
        )
    return tuple(step)


def forecasted(log: Log, selector: str, forecast: Forecast, author: Author) -> Step:
    """Candidates keep a forecast, in the place of an earlier one; they stay candidates. What is
    decided already has no forecast: it would be none."""
    step: list[Release] = []
    for item in log.select(selector):
        if item.state is not ReleaseState.CANDIDATE:
            raise RegistryError(
                f"{item.model} {item.digest[:12]}: is {item.state.value} since "
                f"{item.changed_at:%Y-%m-%d %H:%M}; only a candidate gets a forecast"
            )
        change = {
            "forecast": forecast,
            "changed_at": author.at,
            "changed_by": author.name,
            "reason": author.reason,
        }
        step.append(item.model_copy(update=change))
    return tuple(step)


def approval(log: Log, selector: str, author: Author) -> Step:
    """Candidates become active, and what was active superseded: only what was gated against the
    release that is active now."""
    step: list[Release] = []
    for candidate in log.select(selector):
        active = log.active(candidate.model)
        approved = _moved(candidate, ReleaseState.ACTIVE, author, frm=ReleaseState.CANDIDATE)
        if (active.digest if active else None) != candidate.previous:
            raise RegistryError(
                f"{candidate.model} {candidate.digest[:12]}: was gated against "
                f"{_short(candidate.previous)}, active is "
                f"{_short(active.digest if active else None)}; repair again"
            )
        if active is not None:
            step.append(_moved(active, ReleaseState.SUPERSEDED, author))
        step.append(approved)
    return tuple(step)


def rejection(log: Log, selector: str, author: Author) -> Step:
    """Candidates become rejected, for good."""
    return tuple(
        _moved(item, ReleaseState.REJECTED, author, frm=ReleaseState.CANDIDATE)
        for item in log.select(selector)
    )


def rolled_back(log: Log, model: str, author: Author) -> Step:
    """A model's active release is taken back, with those of its plan; each predecessor becomes
    active again. A policy adapter without a predecessor leaves the base model."""
    active = log.active(model)
    if active is None:
        raise RegistryError(f"{model}: has no active release; see `ares release list`")
    step: list[Release] = []
    for item in log.select(active.plan_id or active.digest):
        if item.state is not ReleaseState.ACTIVE:
            continue
        before = log.find(item.model, item.previous) if item.previous else None
        if before is None and item.kind != "policy":
            raise RegistryError(f"{item.model}: no release before {item.digest[:12]} to go back to")
        step.append(_moved(item, ReleaseState.ROLLED_BACK, author))
        if before is not None:
            step.append(_moved(before, ReleaseState.ACTIVE, author))
    return tuple(step)


def announcements(log: Log) -> dict[bytes, bytes | None]:
    """What the compacted releases topic should hold: key to value, None for a deletion.

    A model's own name is the key of its active release, and of nothing else, so that who starts
    by reading the topic finds it; every other state has the key "model@digest".
    """
    wanted: dict[bytes, bytes | None] = {}
    for release in log.releases:
        wanted.setdefault(release.model.encode(), None)
        apart = f"{release.model}@{release.digest}".encode()
        if release.state is ReleaseState.ACTIVE:
            wanted[release.model.encode()] = release.encode()
            wanted[apart] = None
        else:
            wanted[apart] = release.encode()
    return wanted


class Announced:
    """Reads a releases topic back, record by record, as `announcements` wrote it."""

    def __init__(self) -> None:
        self._ended: dict[bytes, Release] = {}
        """What was rejected or rolled back, by the key that says so."""

    def take(self, key: bytes | None, value: bytes | None) -> Release | None:
        """One record; None for a deletion. Raises DecodeError."""
        if value is None:
            self._ended.pop(key or b"", None)
            return None
        release = Release.decode(value)
        self.note(key, release)
        return release

    def note(self, key: bytes | None, release: Release) -> None:
        """One record that was decoded already."""
        key = key or b""
        ended = self._ended.pop(key, None)
        if release.state in _ENDED:
            self._ended[key] = release
        elif ended is not None and release.state is ReleaseState.ACTIVE and _same(ended, release):
            # Of a rejected release no later word under its key makes an active one.
            self._ended[key] = ended

    @staticmethod
    def check_key(key: bytes | None, release: Release) -> None:
        """Raises DecodeError for an active release under another key than its model's name, where
        a second one would stand beside the first."""
        if release.state is ReleaseState.ACTIVE and key != release.model.encode():
            raise DecodeError(
                f"release {release.digest[:12]} is active under a key that is not its model's name",
                field="key",
            )

    def check(self, release: Release) -> None:
        """Raises DecodeError for an active release that the topic calls rejected or rolled back as
        well: those are never active again."""
        ended = next((item for item in self._ended.values() if _same(item, release)), None)
        if release.state is ReleaseState.ACTIVE and ended is not None:
            raise DecodeError(
                f"release {release.digest[:12]} is announced as active, and as "
                f"{ended.state.value} since {ended.changed_at:%Y-%m-%d %H:%M}; `ares release "
                "announce` tells what the registry says",
                field="state",
            )


def _same(one: Release, other: Release) -> bool:
    return (one.model, one.digest) == (other.model, other.digest)


def differences(
    wanted: Mapping[bytes, bytes | None], present: Mapping[bytes, bytes]
) -> dict[bytes, bytes | None]:
    """What must be published to turn `present` into `wanted`; keys of others are left alone."""
    return {key: value for key, value in wanted.items() if present.get(key) != value}


def _moved(
    release: Release, to: ReleaseState, author: Author, *, frm: ReleaseState | None = None
) -> Release:
    if (frm is not None and release.state is not frm) or (release.state, to) not in _LEGAL:
        raise RegistryError(
            f"{release.model} {release.digest[:12]}: is {release.state.value} since "
            f"{release.changed_at:%Y-%m-%d %H:%M}; only a {(frm or ReleaseState.ACTIVE).value} "
            f"release can become {to.value}"
        )
    change: dict[str, Any] = {
        "state": to,
        "changed_at": author.at,
        "changed_by": author.name,
        "reason": author.reason,
    }
    return release.model_copy(update=change)


def _short(digest: str | None) -> str:
    return digest[:12] if digest else "nothing"
