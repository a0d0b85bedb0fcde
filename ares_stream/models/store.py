"""Where releases are kept: a log of steps and the released files, under one root.

    <root>/steps/00000001.json       one file per step, each naming its predecessor's SHA-256
    <root>/models/<model>/<digest>/  the released files, never changed
    <root>/gates/<digest>.json       the gate's reports that releases name, by their SHA-256

`root` is a path or any fsspec URL (s3://, gs://, ...). A step is one file that appears whole or
not at all and that two writers cannot both create. Files are copied before the step that names
them, and never again once a step does: a copy that a kill cut short is not a release, and a
repeated proposal writes nothing. Every call blocks, for as long as gigabytes take to be hashed
and copied: services use registry.py.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import fsspec
from fsspec.implementations.local import LocalFileSystem
from pydantic import BaseModel, ConfigDict, ValidationError

from ares_stream.errors import AresError, BundleError, IntegrityError, RegistryError
from ares_stream.files import is_full, staging_folder, unwritable
from ares_stream.models import releases
from ares_stream.models.adapters import ADAPTER, MAX_RANK, adapter_digest, check_adapter
from ares_stream.models.bundles import MANIFEST, load_bundle
from ares_stream.models.releases import Author, Log, ReleaseKind, StoredArtefact
from ares_stream.records.base import canonical_json
from ares_stream.records.forecast import Forecast
from ares_stream.records.release import Release, ReleaseState

ATTEMPTS: Final = 5
"""Two writers at once are rare; more collisions than this mean that something loops."""
_MODEL: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")


Objections = Callable[[Release], Sequence[str]]
"""What speaks against approving a candidate, besides its state; nothing in most places."""


@dataclass(frozen=True, slots=True)
class Artefact:
    """Files to release: a bundle directory (harm, reward) or a PEFT adapter (policy)."""

    model: str
    kind: ReleaseKind
    path: Path


class _StepFile(BaseModel):
    """One entry of the log; `previous` is the SHA-256 of the file before it."""

    model_config = ConfigDict(frozen=True, extra="forbid", serialize_by_alias=True)

    previous: str | None
    releases: tuple[Release, ...]


class ReleaseStore:
    """The releases under one root. Every method that changes something is one step, whole or not
    at all, and refuses what the present state does not allow with RegistryError. Adapters of a
    rank over `max_rank` are refused: the policy server would refuse them. A candidate that
    `objections` says something against is not approved."""

    def __init__(
        self,
        root: str,
        *,
        max_rank: int = MAX_RANK,
        objections: Objections = lambda _: (),
    ) -> None:
        try:
            self._files, path = fsspec.core.url_to_fs(root)
        except (ValueError, ImportError) as error:
            raise RegistryError(f"{root}: not a place for a registry: {error}") from None
        self.root = root
        self.max_rank = max_rank
        self._objections = objections
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
                step = _StepFile.model_validate_json(raw)
            except ValidationError:
                raise IntegrityError(f"{name}: not a step of a registry") from None
            if step.previous != last:
                raise IntegrityError(f"{name}: does not follow the step before it; one was changed")
            steps.append(step.releases)
            last = hashlib.sha256(raw).hexdigest()
        return Log(tuple(steps), last)

    def gate_report(self, digest: str) -> bytes | None:
        """What the gate said of a release, or of a repair that it rejected, JSON; None where it is
        not kept. Raises IntegrityError where it was changed."""
        path = self._gate(digest)
        self._files.invalidate_cache()
        try:
            raw: bytes = self._files.cat_file(path)
        except FileNotFoundError:
            return None
        except OSError as error:
            raise RegistryError(f"{self.root}: cannot be read: {error}") from error
        if hashlib.sha256(raw).hexdigest() != digest:
            raise IntegrityError(f"{path}: is not what its name says; it was changed")
        return raw

    def fetch(self, release: Release, cache: Path) -> Path:
        """A verified local directory of a release: the store's own, or a copy under `cache`.

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
        gate_report: bytes | None = None,
        against: Mapping[str, str | None] | None = None,
    ) -> tuple[Release, ...]:
        """Copy the files and make them candidates, together. A repeat changes nothing.

        `against` maps a model to the digest of the release that its gate compared it with; by
        default the active one. It becomes `previous`. `gate_report` is the gate's, JSON: it is kept
        beside them, and they name its SHA-256. Raises BundleError for an adapter that a
        policy server cannot load.
        """
        stored: list[StoredArtefact] = []
        for item in artefacts:
            if not _MODEL.fullmatch(item.model):
                raise RegistryError(
                    f"{item.model!r}: not a model's name; use letters, digits, '.', '_' and '-'"
                )
            if item.kind == "policy":
                check_adapter(item.path, max_rank=self.max_rank)
            name = artefact_digest(item.path, item.kind)
            stored.append(StoredArtefact(item.model, item.kind, name, self._uri(item.model, name)))

        gate = None if gate_report is None else hashlib.sha256(gate_report).hexdigest()

        def decide(log: Log) -> Sequence[Release]:
            return releases.proposal(
                log, stored, author, plan_id=plan_id, gate_report=gate, against=against
            )

        log = self.log()
        decide(log)  # What is refused is not copied.
        if gate is not None and gate_report is not None:
            self.keep_gate_report(gate_report)
        for item, copy in zip(artefacts, stored, strict=True):
            if log.find(copy.model, copy.digest) is None:
                self._copy(item, copy)
        log = self._take(decide)
        return tuple(
            found for item in stored if (found := log.find(item.model, item.digest)) is not None
        )

    def approve(self, selector: str, author: Author) -> tuple[Release, ...]:
        """Make candidates active, and what was active superseded.

        Raises RegistryError when the active release is not the one they were gated against, or
        the forecast that is asked for does not allow it; IntegrityError when their files changed
        since.
        """

        def decide(log: Log) -> Sequence[Release]:
            step = releases.approval(log, selector, author)
            for item in log.select(selector):
                if reasons := self._objections(item):
                    raise RegistryError(
                        f"{item.model} {item.digest[:12]}: its forecast does not allow it: "
                        + "; ".join(reasons)
                    )
            return step

        return self._activate(decide)

    def forecast(self, selector: str, forecast: Forecast, author: Author) -> tuple[Release, ...]:
        """Keep what candidates are expected to do in production, in the place of what was
        expected before."""
        return self._take(lambda log: releases.forecasted(log, selector, forecast, author)).steps[
            -1
        ]

    def reject(self, selector: str, author: Author) -> tuple[Release, ...]:
        """Make candidates rejected, for good."""
        return self._take(lambda log: releases.rejection(log, selector, author)).steps[-1]

    def rollback(self, model: str, author: Author) -> tuple[Release, ...]:
        """Take back a model's active release, with those of its plan; each predecessor becomes
        active again. A policy adapter without a predecessor leaves the base model."""
        return self._activate(lambda log: releases.rolled_back(log, model, author))

    def _activate(self, decide: Callable[[Log], Sequence[Release]]) -> tuple[Release, ...]:
        """A step after which releases are active: their files are verified first."""
        verified: set[str] = set()

        def decide_and_verify(log: Log) -> Sequence[Release]:
            step = decide(log)
            for item in step:
                if item.state is ReleaseState.ACTIVE and item.digest not in verified:
                    self.verify(item)
                    verified.add(item.digest)
            return step

        return self._take(decide_and_verify).steps[-1]

    # Storage

    def _take(self, decide: Callable[[Log], Sequence[Release]]) -> Log:
        for _ in range(ATTEMPTS):
            log = self.log()
            step = tuple(decide(log))
            if not step:
                return log
            file = _StepFile(previous=log.last, releases=step)
            raw = canonical_json(file.model_dump(mode="json", exclude_none=False))
            try:
                self._create(f"{self._path}/steps/{len(log.steps) + 1:08d}.json", raw)
            except FileExistsError:
                continue  # Somebody else took this step; what is allowed may have changed.
            except OSError as error:
                raise unwritable(self.root, error, RegistryError) from error
            return Log((*log.steps, step), hashlib.sha256(raw).hexdigest())
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
            Path(name).unlink()

    def keep_gate_report(self, report: bytes) -> None:
        """Keep what the gate said by its SHA-256. A repeat changes nothing."""
        digest = hashlib.sha256(report).hexdigest()
        try:
            self._create(self._gate(digest), report)
        except FileExistsError:
            self.gate_report(digest)
        except OSError as error:
            raise unwritable(self.root, error, RegistryError) from error

    def _gate(self, digest: str) -> str:
        return f"{self._path}/gates/{digest}.json"

    def _step_names(self) -> list[str]:
        folder = f"{self._path}/steps"
        self._files.invalidate_cache()
        try:
            # Whether it exists is not asked: a share that is away for a moment, and a folder that
            # this user may not enter, would be a registry without releases.
            names = self._files.ls(folder, detail=False)
        except FileNotFoundError:
            return []
        except OSError as error:
            raise RegistryError(f"{self.root}: cannot be read: {error}") from error
        return sorted(name for name in names if name.endswith(".json"))

    def _read(self, name: str) -> bytes:
        try:
            raw: bytes = self._files.cat_file(name)
        except OSError as error:
            raise RegistryError(f"{name}: cannot be read: {error}") from error
        return raw

    def _copy(self, artefact: Artefact, stored: StoredArtefact) -> None:
        """Put files where no release names them yet."""
        folder = self._folder(stored.model, stored.digest)
        try:
            if isinstance(self._files, LocalFileSystem):
                _copy_whole(artefact, Path(folder), stored.digest)
                return
            # The file that makes it whole goes last.
            order = sorted(
                artefact.path.iterdir(),
                key=lambda file: (file.name in (MANIFEST, ADAPTER[0]), file),
            )
            self._files.makedirs(folder, exist_ok=True)
            for file in order:
                self._files.put_file(str(file), f"{folder}/{file.name}")
        except AresError:
            raise
        except OSError as error:
            raise unwritable(folder, error, RegistryError) from error
        # Each store's client has errors of its own.
        except Exception as error:
            raise RegistryError(f"{folder}: cannot be written: {error}") from error

    def _folder(self, model: str, digest: str) -> str:
        return f"{self._path}/models/{model}/{digest}"

    def _uri(self, model: str, digest: str) -> str:
        return str(self._files.unstrip_protocol(self._folder(model, digest)))


def _copy_whole(artefact: Artefact, target: Path, digest: str) -> None:
    """A folder that appears under its name whole; one that is whole already stays untouched."""
    if target.exists():
        try:
            if artefact_digest(target, artefact.kind) == digest:
                return
        except BundleError:
            pass
    with staging_folder(target, error=RegistryError) as staging:
        for file in artefact.path.iterdir():
            with (staging / file.name).open("wb") as copy:
                with file.open("rb") as source:
                    shutil.copyfileobj(source, copy, 1 << 20)
                copy.flush()
                os.fsync(copy.fileno())
        # It may have been changed while it was copied.
        if artefact_digest(staging, artefact.kind) != digest:
            raise IntegrityError(f"{artefact.path}: was changed while it was copied")
        # What stands there is a copy that was cut short, which no release names.
        shutil.rmtree(target, ignore_errors=True)
        staging.chmod(0o755)
        try:
            staging.rename(target)
        except OSError:
            # Another process may have been faster with the same files.
            if artefact_digest(target, artefact.kind) != digest:
                raise


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
        with staging_folder(target, error=RegistryError) as staging:
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
        if isinstance(error, OSError) and is_full(error):
            raise unwritable(target, error) from error
        raise RegistryError(f"{release.uri}: cannot be fetched: {error}") from error
    return target


def _verify(path: Path, release: Release) -> None:
    try:
        actual = artefact_digest(path, release.kind)
    except BundleError as error:
        raise IntegrityError(str(error)) from error
    except OSError as error:
        raise RegistryError(f"{path}: cannot be read: {error.strerror}") from error
    if actual != release.digest:
        raise IntegrityError(
            f"{release.uri}: has digest {actual[:12]}, the release names {release.digest[:12]}"
        )


def artefact_digest(path: Path, kind: ReleaseKind) -> str:
    """The digest that names these files: a bundle's own, or that of an adapter's file digests.

    Raises BundleError or IntegrityError for what is not whole or could be unpickled.
    """
    return adapter_digest(path) if kind == "policy" else load_bundle(path, kind).digest
