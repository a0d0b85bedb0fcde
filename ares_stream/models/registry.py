"""The registry of releases: what was proposed, what is active, what may be taken back.

    <root>/steps/00000001.json     one file per step, each naming its predecessor's SHA-256
    <root>/models/<model>/<digest>/  the released files, never changed

`root` is a path or any fsspec URL (s3://, gs://, ...). A step is one file that appears whole
or not at all and that two writers cannot both create, so a policy adapter and the reward model
that were repaired together are promoted together or not at all. Files are copied before the
step that names them: a copy that a kill cut short is not a release.

    candidate ──► active ──► superseded ──► active (when its successor is rolled back)
        │            └─────► rolled_back
        └──► rejected
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, Final, Literal

import fsspec
from fsspec.implementations.local import LocalFileSystem
from pydantic import BaseModel, ConfigDict, ValidationError

from ares_stream.errors import AresError, BundleError, IntegrityError, RegistryError
from ares_stream.models.bundles import MANIFEST, file_digest, load_bundle
from ares_stream.records.base import canonical_json, digest
from ares_stream.records.release import Release, ReleaseState

ReleaseKind = Literal["harm", "reward", "policy"]
ADAPTER: Final = ("adapter_config.json", "adapter_model.safetensors")
"""What a PEFT adapter consists of at least; vLLM and transformers load such a directory."""
UNPICKLED: Final = (".bin", ".pt", ".pth", ".pkl", ".ckpt")
ATTEMPTS: Final = 5
"""Two writers at once are rare; more collisions than this mean that something loops."""
_MODEL: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
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


@dataclass(frozen=True, slots=True)
class Artefact:
    """Files to release: a bundle directory (harm, reward) or a PEFT adapter (policy)."""

    model: str
    kind: ReleaseKind
    path: Path


@dataclass(frozen=True, slots=True)
class Author:
    """Who takes a step, when and why. `at` carries a time zone."""

    name: str
    at: datetime
    reason: str = ""


class _Step(BaseModel):
    """One entry of the log; `previous` is the SHA-256 of the file before it."""

    model_config = ConfigDict(frozen=True, extra="forbid", serialize_by_alias=True)

    previous: str | None
    releases: tuple[Release, ...]


@dataclass(frozen=True, slots=True)
class Log:
    """Every step until now, and the present state of each release."""

    steps: tuple[tuple[Release, ...], ...]
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


class Registry:
    """The releases under one root. Every method that changes something is one step, whole or
    not at all, and refuses what the present state does not allow with RegistryError."""

    def __init__(self, root: str) -> None:
        try:
            self._files, path = fsspec.core.url_to_fs(root)
        except (ValueError, ImportError) as error:
            raise RegistryError(f"{root}: not a place for a registry: {error}") from None
        self.root = root
        self._path: str = path.rstrip("/")

    # Reading

    def log(self) -> Log:
        """Read and verify every step. Raises IntegrityError for one that was changed."""
        steps: list[tuple[Release, ...]] = []
        last: str | None = None
        for number, name in enumerate(self._step_names(), start=1):
            if name.rsplit("/", 1)[-1] != f"{number:08d}.json":
                raise IntegrityError(f"{name}: step {number} of the registry is missing before it")
            raw = self._read(name)
            try:
                step = _Step.model_validate_json(raw)
            except ValidationError:
                raise IntegrityError(f"{name}: not a step of a registry") from None
            if step.previous != last:
                raise IntegrityError(f"{name}: does not follow the step before it; one was changed")
            steps.append(step.releases)
            last = hashlib.sha256(raw).hexdigest()
        return Log(tuple(steps), last)

    def fetch(self, release: Release, cache: Path) -> Path:
        """A verified local directory of a release: the registry's own, or a copy under `cache`.

        Raises IntegrityError when its files are not those of the digest.
        """
        return _fetched(self._files, self._folder(release.model, release.digest), release, cache)

    def verify(self, release: Release) -> None:
        """Check every byte of a release. Raises IntegrityError."""
        with tempfile.TemporaryDirectory(prefix="ares-verify-") as folder:
            self.fetch(release, Path(folder))

    # Steps

    def propose(
        self,
        artefacts: Sequence[Artefact],
        author: Author,
        *,
        plan_id: str | None = None,
        gate_report: str | None = None,
        against: Mapping[str, str | None] | None = None,
    ) -> tuple[Release, ...]:
        """Copy the files and make them candidates, together. A repeat changes nothing.

        `against` maps a model to the digest of the release that its gate compared it with; by
        default the active one. It becomes `previous`.
        """
        digests = [artefact_digest(item.path, item.kind) for item in artefacts]
        for item, name in zip(artefacts, digests, strict=True):
            self._copy(item, name)

        def decide(log: Log) -> list[Release]:
            step: list[Release] = []
            for item, name in zip(artefacts, digests, strict=True):
                known = log.find(item.model, name)
                if known is not None and known.plan_id == plan_id:
                    continue
                if known is not None:
                    raise RegistryError(
                        f"{item.model} {name[:12]}: exists already, {known.state.value} since "
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
                        digest=name,
                        uri=self._uri(item.model, name),
                        state=ReleaseState.CANDIDATE,
                        changed_at=author.at,
                        changed_by=author.name,
                        reason=author.reason,
                        plan_id=plan_id,
                        gate_report=gate_report,
                        previous=previous,
                    )
                )
            return step

        log = self._take(decide)
        return tuple(
            found
            for item, name in zip(artefacts, digests, strict=True)
            if (found := log.find(item.model, name)) is not None
        )

    def approve(self, selector: str, author: Author) -> tuple[Release, ...]:
        """Make candidates active, and what was active superseded.

        Raises RegistryError when the active release is not the one they were gated against,
        IntegrityError when their files changed since.
        """

        def decide(log: Log) -> list[Release]:
            step: list[Release] = []
            for candidate in log.select(selector):
                active = log.active(candidate.model)
                _refuse_illegal(candidate, ReleaseState.ACTIVE, frm=ReleaseState.CANDIDATE)
                if (active.digest if active else None) != candidate.previous:
                    raise RegistryError(
                        f"{candidate.model} {candidate.digest[:12]}: was gated against "
                        f"{_short(candidate.previous)}, active is "
                        f"{_short(active.digest if active else None)}; repair again"
                    )
                self.verify(candidate)
                if active is not None:
                    step.append(_moved(active, ReleaseState.SUPERSEDED, author))
                step.append(_moved(candidate, ReleaseState.ACTIVE, author))
            return step

        return _changed(self._take(decide))

    def reject(self, selector: str, author: Author) -> tuple[Release, ...]:
        """Make candidates rejected, for good."""

        def decide(log: Log) -> list[Release]:
            return [
                _moved(item, ReleaseState.REJECTED, author, frm=ReleaseState.CANDIDATE)
                for item in log.select(selector)
            ]

        return _changed(self._take(decide))

    def rollback(self, model: str, author: Author) -> tuple[Release, ...]:
        """Take back a model's active release, with those of its plan; each predecessor becomes
        active again. A policy adapter without a predecessor leaves the base model."""

        def decide(log: Log) -> list[Release]:
            active = log.active(model)
            if active is None:
                raise RegistryError(f"{model}: has no active release; see `ares release list`")
            step: list[Release] = []
            for item in log.select(active.plan_id or active.digest):
                if item.state is not ReleaseState.ACTIVE:
                    continue
                before = log.find(item.model, item.previous) if item.previous else None
                if before is None and item.kind != "policy":
                    raise RegistryError(
                        f"{item.model}: no release before {item.digest[:12]} to go back to"
                    )
                step.append(_moved(item, ReleaseState.ROLLED_BACK, author))
                if before is not None:
                    self.verify(before)
                    step.append(_moved(before, ReleaseState.ACTIVE, author))
            return step

        return _changed(self._take(decide))

    # Storage

    def _take(self, decide: Callable[[Log], Sequence[Release]]) -> Log:
        for _ in range(ATTEMPTS):
            log = self.log()
            releases = tuple(decide(log))
            if not releases:
                return log
            step = _Step(previous=log.last, releases=releases)
            raw = canonical_json(step.model_dump(mode="json", exclude_none=False))
            try:
                self._create(f"{self._path}/steps/{len(log.steps) + 1:08d}.json", raw)
            except FileExistsError:
                continue  # Somebody else took this step; what is allowed may have changed.
            except OSError as error:
                raise RegistryError(f"{self.root}: cannot be written: {error}") from error
            return Log((*log.steps, releases), hashlib.sha256(raw).hexdigest())
        raise RegistryError(f"{self.root}: others kept writing at the same time; try again")

    def _create(self, path: str, raw: bytes) -> None:
        """Write a new file whole. Raises FileExistsError when it is there."""
        if not isinstance(self._files, LocalFileSystem):
            self._files.pipe_file(path, raw, mode="create")
            return
        target = Path(path)
        target.parent.mkdir(parents=True, exist_ok=True)
        descriptor, name = tempfile.mkstemp(prefix=".step-", dir=target.parent)
        try:
            with os.fdopen(descriptor, "wb") as file:
                file.write(raw)
                file.flush()
                os.fsync(file.fileno())
            # A link, since a rename would replace a step that another writer took meanwhile.
            os.link(name, target)
        finally:
            os.unlink(name)

    def _step_names(self) -> list[str]:
        folder = f"{self._path}/steps"
        self._files.invalidate_cache()
        try:
            if not self._files.exists(folder):
                return []
            return sorted(
                name for name in self._files.ls(folder, detail=False) if name.endswith(".json")
            )
        except OSError as error:
            raise RegistryError(f"{self.root}: cannot be read: {error}") from error

    def _read(self, name: str) -> bytes:
        try:
            raw: bytes = self._files.cat_file(name)
        except OSError as error:
            raise RegistryError(f"{name}: cannot be read: {error}") from error
        return raw

    def _copy(self, artefact: Artefact, name: str) -> None:
        if not _MODEL.fullmatch(artefact.model):
            raise RegistryError(
                f"{artefact.model!r}: not a model's name; use letters, digits, '.', '_' and '-'"
            )
        folder = self._folder(artefact.model, name)
        # The file that makes it whole goes last.
        order = sorted(
            artefact.path.iterdir(), key=lambda file: (file.name in (MANIFEST, ADAPTER[0]), file)
        )
        try:
            self._files.makedirs(folder, exist_ok=True)
            for file in order:
                self._files.put_file(str(file), f"{folder}/{file.name}")
        except OSError as error:
            raise RegistryError(f"{folder}: cannot be written: {error}") from error

    def _folder(self, model: str, digest: str) -> str:
        return f"{self._path}/models/{model}/{digest}"

    def _uri(self, model: str, digest: str) -> str:
        return str(self._files.unstrip_protocol(self._folder(model, digest)))


def fetch_release(release: Release, cache: Path) -> Path:
    """A verified local directory of a release, wherever it lies: that of its URI where this is
    a path, or a copy under `cache` of what an fsspec URL (s3://, gs://, ...) names.

    Raises RegistryError when it cannot be fetched, IntegrityError when its files are not those of
    its digest. A copy that is not whole is never seen under its name.
    """
    try:
        files, source = fsspec.core.url_to_fs(release.uri)
    except (ValueError, ImportError) as error:
        raise RegistryError(f"{release.uri}: cannot be fetched: {error}") from None
    return _fetched(files, source, release, cache)


def _fetched(files: Any, source: str, release: Release, cache: Path) -> Path:
    if isinstance(files, LocalFileSystem):
        _verify(Path(source), release)
        return Path(source)
    if not _MODEL.fullmatch(release.model):
        raise RegistryError(f"{release.model!r}: not a model's name")
    target = cache / release.model / release.digest
    if target.exists():
        try:
            _verify(target, release)
        except IntegrityError:
            shutil.rmtree(target, ignore_errors=True)  # The store has it whole.
        else:
            return target
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        staging = Path(tempfile.mkdtemp(prefix=".fetch-", dir=target.parent))
    except OSError as error:
        raise RegistryError(f"{target.parent}: cannot be written: {error.strerror}") from error
    try:
        for name in files.find(source):
            files.get_file(name, str(staging / name.rsplit("/", 1)[-1]))
        _verify(staging, release)
        try:
            staging.rename(target)
        except OSError:
            # Another process that shares the cache may have been faster.
            _verify(target, release)
    except AresError:
        raise
    # Each store's client has errors of its own.
    except Exception as error:
        raise RegistryError(f"{release.uri}: cannot be fetched: {error}") from error
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    return target


def _verify(path: Path, release: Release) -> None:
    try:
        actual = artefact_digest(path, release.kind)
    except BundleError as error:
        raise IntegrityError(str(error)) from error
    if actual != release.digest:
        raise IntegrityError(
            f"{release.uri}: has digest {actual[:12]}, the release names {release.digest[:12]}"
        )


def artefact_digest(path: Path, kind: ReleaseKind) -> str:
    """The digest that names these files: a bundle's own, or that of an adapter's file digests.

    Raises BundleError or IntegrityError for what is not whole or could be unpickled.
    """
    if kind != "policy":
        return load_bundle(path, kind).digest
    missing = [name for name in ADAPTER if not (path / name).is_file()]
    if missing:
        raise BundleError(f"{path}: not a PEFT adapter with safetensors: no {missing[0]}")
    files: dict[str, str] = {}
    for file in sorted(path.iterdir()):
        if file.is_symlink() or not file.is_file():
            raise IntegrityError(f"{file}: not a plain file; an adapter is a flat directory")
        if file.suffix in UNPICKLED:
            raise IntegrityError(f"{file}: would have to be unpickled; keep safetensors only")
        files[file.name] = file_digest(file)
    return digest(files)


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


def differences(
    wanted: Mapping[bytes, bytes | None], present: Mapping[bytes, bytes]
) -> dict[bytes, bytes | None]:
    """What must be published to turn `present` into `wanted`; keys of others are left alone."""
    return {key: value for key, value in wanted.items() if present.get(key) != value}


def _refuse_illegal(release: Release, to: ReleaseState, *, frm: ReleaseState | None = None) -> None:
    if (frm is not None and release.state is not frm) or (release.state, to) not in _LEGAL:
        raise RegistryError(
            f"{release.model} {release.digest[:12]}: is {release.state.value} since "
            f"{release.changed_at:%Y-%m-%d %H:%M}; only a {(frm or ReleaseState.ACTIVE).value} "
            f"release can become {to.value}"
        )


def _moved(
    release: Release, to: ReleaseState, author: Author, *, frm: ReleaseState | None = None
) -> Release:
    _refuse_illegal(release, to, frm=frm)
    change: dict[str, Any] = {
        "state": to,
        "changed_at": author.at,
        "changed_by": author.name,
        "reason": author.reason,
    }
    return release.model_copy(update=change)


def _changed(log: Log) -> tuple[Release, ...]:
    return log.steps[-1]


def _short(digest: str | None) -> str:
    return digest[:12] if digest else "nothing"
