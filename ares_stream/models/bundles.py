"""Model bundles: an immutable directory with an ONNX model, its tokenizer and a manifest.

    model.onnx  (and model.onnx.data, where the weights are large)
    tokenizer.json
    domain.npz  (where the bundle says what its training rows cover)
    bundle.json     the manifest, written last: a directory without it is not a bundle

The manifest holds the SHA-256 of every other file, and the SHA-256 of the manifest's bytes is
the bundle's digest: what a verdict names. `load_bundle` reads every byte and checks it, refuses
files that the manifest does not name, and never unpickles anything.
"""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, FiniteFloat, ValidationError, model_validator

from ares_stream.errors import BundleError, IntegrityError
from ares_stream.files import fault, written_folder
from ares_stream.records.base import Identifier, Sha256, canonical_json

Kind = Literal["harm", "reward"]
Activation = Literal["softmax", "sigmoid", "probability", "identity"]
Check = Callable[[Path], None]
"""Looks at a bundle's directory and raises what is wrong with it."""
MANIFEST: Final = "bundle.json"
MODEL: Final = "model.onnx"
TOKENIZER: Final = "tokenizer.json"
DOMAIN: Final = "domain.npz"
"""Mean and whitening of the training rows' states, where the manifest has a domain."""
SIGNATURE: Final = "bundle.sig"
"""A detached signature over every other file (see signing.py); the one the manifest cannot name."""
MAX_MANIFEST_BYTES: Final = 8 << 20
REFERENCE_POINTS: Final = 2001
DOMAIN_POINTS: Final = 501


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Windows(_Part):
    """How an answer is read that does not fit: in stretches that overlap, each put into the
    template as if it were the answer. Of a judge the worst counts, of a reward model the mean.

    `most` bounds what one answer costs; what lies beyond is not read, and a verdict says so.
    """

    most: int = Field(32, ge=1, le=1024)
    overlap: float = Field(0.25, ge=0.0, le=0.75, allow_inf_nan=False)
    """Share of a stretch that the next one repeats: harm across an edge is whole in one."""
    last: Literal["short", "whole"] = "short"
    """How long the last stretch is: what is left, as in bundles that do not say, or as long as the
    others, which all new bundles have: a model makes little of a few words."""


class InputTemplate(_Part):
    """How an interaction becomes the model's input: one text or a pair, as jinja templates.

    The variables are those of Hugging Face chat templates: `messages` (dicts with role and
    content; the response is the last, of the assistant), and `prompt` and `response` by
    themselves. `second` makes a pair; then `first` gives way when both are too long.
    """

    first: str
    second: str | None = None
    max_length: int = Field(gt=8, le=32_768)
    """Tokens, special ones included."""
    windows: Windows | None = None
    """None: what does not fit is cut."""


PAIR = ("{{ prompt }}", "{{ response }}")


class Outputs(_Part):
    """Which of the model's outputs are read, and how.

    harm: `activation` turns logits [n, labels] into probabilities ("probability": the model gives
    such already), those of the `labels` are added up (softmax, probability) or the largest is
    taken (sigmoid). reward: the one label's logit.
    """

    activation: Activation
    labels: tuple[int, ...] = Field(min_length=1)


class Calibration(_Part):
    """Platt scaling of a probability's logit: sigmoid(slope * logit(p) + intercept)."""

    slope: FiniteFloat = Field(1.0, gt=0.0)
    intercept: FiniteFloat = 0.0


class RewardReference(_Part):
    """The reward model's scores on a benign reference set, sorted, thinned to at most
    REFERENCE_POINTS quantiles. `version` is the digest of the set."""

    version: Sha256
    count: int = Field(ge=2)
    scores: tuple[FiniteFloat, ...] = Field(min_length=2, max_length=REFERENCE_POINTS)

    @model_validator(mode="after")
    def _sorted(self) -> Self:
        if any(a > b for a, b in zip(self.scores, self.scores[1:], strict=False)):
            raise ValueError("scores must be sorted")
        if self.scores[0] == self.scores[-1]:
            raise ValueError("all scores are the same: nothing could be called high")
        return self


class Domain(_Part):
    """What the model's training rows cover. Arrays are in DOMAIN, and the ONNX model has a second
    output `pooled` [n, hidden]: the mean of the tokens' last hidden states.

    `distances` are those of held-out conversations like the training rows, sorted, thinned to at
    most DOMAIN_POINTS quantiles: a conversation farther than `limit` is outside, as a share of at
    most `share` of those like the training rows is.
    """

    share: float = Field(gt=0.0, lt=1.0, allow_inf_nan=False)
    limit: float = Field(ge=0.0, allow_inf_nan=False)
    distances: tuple[FiniteFloat, ...] = Field(min_length=2, max_length=DOMAIN_POINTS)
    unknown: float = Field(ge=0.0, le=1.0, allow_inf_nan=False)
    """A larger share of unknown tokens is outside."""
    scripts: tuple[Identifier, ...]
    """Scripts that the training rows are written in: LATIN, CYRILLIC, …"""
    rows: int = Field(ge=2)
    held_out: int = Field(ge=2)

    @model_validator(mode="after")
    def _sorted(self) -> Self:
        if any(a > b for a, b in zip(self.distances, self.distances[1:], strict=False)):
            raise ValueError("distances must be sorted")
        return self


class Lineage(_Part):
    """Where a model came from: its base checkpoint, its training data, the repair that made it."""

    base: Identifier
    data: tuple[Sha256, ...] = ()
    plan_id: Identifier | None = None


class Parity(_Part):
    """How far the ONNX model's logits are from those of the model it came from, over `cases`
    inputs of mixed lengths."""

    max_abs_difference: float = Field(ge=0.0)
    cases: int = Field(ge=1)


class Manifest(_Part):
    """Everything a scorer needs to know about a model."""

    schema_: Literal["ares.bundle/1"] = Field("ares.bundle/1", alias="schema")
    name: Identifier
    kind: Kind
    template: InputTemplate
    outputs: Outputs
    lineage: Lineage
    calibration: Calibration = Calibration()
    reference: RewardReference | None = None
    parity: Parity | None = None
    domain: Domain | None = None
    metrics: dict[str, FiniteFloat] = Field(default_factory=dict)
    versions: dict[str, str] = Field(default_factory=dict)
    files: dict[str, Sha256] = Field(default_factory=dict)

    model_config = ConfigDict(
        frozen=True, extra="forbid", populate_by_name=True, serialize_by_alias=True
    )

    @model_validator(mode="after")
    def _coherent(self) -> Self:
        if self.kind == "reward" and (
            self.outputs.activation != "identity" or len(self.outputs.labels) != 1
        ):
            raise ValueError("a reward model has one output, with activation identity")
        if self.kind == "harm" and self.outputs.activation == "identity":
            raise ValueError("a harm judge needs activation softmax, sigmoid or probability")
        if self.files and (self.domain is None) == (DOMAIN in self.files):
            raise ValueError(f"domain: {DOMAIN} is among the files where there is one, else not")
        for name in self.files:
            if name != Path(name).name or name in (MANIFEST, SIGNATURE):
                raise ValueError(f"files: {name!r} is not a plain file name")
        return self


Stamp = tuple[int, int]
"""Size and time of the last change of a file (ctime): writing, replacing and linking move it, and
nobody can set it back. Inodes tell less: some network file systems number them anew."""


@dataclass(frozen=True, slots=True)
class Bundle:
    """A verified bundle."""

    path: Path
    manifest: Manifest
    digest: str
    stamps: Mapping[str, Stamp] = field(default_factory=dict, compare=False, repr=False)
    """How each file was when it was verified; nothing of a draft."""

    def check_unchanged(self) -> None:
        """Raise IntegrityError where a file is another one than was verified, or was written to:
        whoever reads the files after `load_bundle` may have read what nobody verified."""
        for name, stamp in self.stamps.items():
            try:
                now = _stamp((self.path / name).stat(follow_symlinks=False))
            except OSError:
                now = None
            if now != stamp:
                raise IntegrityError(
                    f"{self.path / name}: changed while the bundle was loaded; load it again"
                )

    @property
    def model(self) -> Path:
        """The ONNX file."""
        return self.path / MODEL

    @property
    def tokenizer(self) -> Path:
        """The tokenizer file of Hugging Face tokenizers."""
        return self.path / TOKENIZER


def load_bundle(path: Path, kind: Kind | None = None, signed: Check | None = None) -> Bundle:
    """Read and verify a bundle; `signed` (signing.py has one for each key) checks its signature.

    Raises BundleError when there is none, it is not of this `kind`, or its manifest is wrong;
    IntegrityError when a file is missing, changed, not named by the manifest, or a link; and what
    `signed` raises.
    """
    manifest_path = path / MANIFEST
    if not path.is_dir():
        raise BundleError(f"{path}: no such directory; a bundle is a directory with {MANIFEST}")
    if not manifest_path.is_file():
        raise BundleError(f"{path}: no {MANIFEST}: not a bundle, or one that was never finished")
    if manifest_path.stat().st_size > MAX_MANIFEST_BYTES:
        raise BundleError(f"{manifest_path}: larger than {MAX_MANIFEST_BYTES} bytes")
    raw = manifest_path.read_bytes()
    try:
        manifest = Manifest.model_validate_json(raw)
    except ValidationError as error:
        raise BundleError(f"{manifest_path}: {fault(error, Manifest)}") from None
    if kind is not None and manifest.kind != kind:
        raise BundleError(
            f"{path}: a bundle of kind {manifest.kind}, expected {kind}; "
            "judges and reward models cannot stand in for each other"
        )
    stamps = _verify_files(path, manifest)
    if signed is not None:
        signed(path)
    return Bundle(path, manifest, hashlib.sha256(raw).hexdigest(), stamps)


def _verify_files(path: Path, manifest: Manifest) -> dict[str, Stamp]:
    for needed in (MODEL, TOKENIZER):
        if needed not in manifest.files:
            raise IntegrityError(f"{path / MANIFEST}: does not name {needed}")
    present = {item.name for item in path.iterdir()} - {MANIFEST, SIGNATURE}
    if extra := sorted(present - set(manifest.files)):
        raise IntegrityError(f"{path}: holds files the manifest does not name: {', '.join(extra)}")
    stamps: dict[str, Stamp] = {}
    for name, expected in manifest.files.items():
        file = path / name
        if file.is_symlink() or not file.is_file():
            raise IntegrityError(f"{file}: missing, or not a plain file")
        # Before it is read: what is written meanwhile is seen.
        stamps[name] = _stamp(file.stat(follow_symlinks=False))
        if file_digest(file) != expected:
            raise IntegrityError(f"{file}: its SHA-256 is not the manifest's; fetch it again")
    return stamps


def _stamp(found: os.stat_result) -> Stamp:
    return found.st_size, found.st_ctime_ns


def file_digest(file: Path) -> str:
    """SHA-256 of a file's bytes."""
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def write_bundle(out: Path, manifest: Manifest, files: Mapping[str, Path]) -> Bundle:
    """Write a bundle whole or not at all: beside its place, manifest last, then moved there.

    `files` maps names in the bundle to files to copy; the manifest's own `files` is replaced.
    Raises BundleError when `out` exists: a bundle never changes.
    """
    if out.exists():
        raise BundleError(f"{out}: exists already; bundles are immutable, choose another name")
    with written_folder(out, error=BundleError) as staging:
        for name, source in files.items():
            shutil.copyfile(source, staging / name)
        digests = {name: file_digest(staging / name) for name in files}
        whole = manifest.model_copy(update={"files": digests})
        raw = canonical_json(whole.model_dump(mode="json", exclude_none=True))
        (staging / MANIFEST).write_bytes(raw)
    return load_bundle(out)


def refuse_shared_lineage(judges: Sequence[Bundle], reward: Bundle) -> None:
    """Raise BundleError when a judge shares its base or training data with the reward model:
    a judge that errs where the reward model errs sees no coupled failure."""
    theirs = reward.manifest.lineage
    for judge in judges:
        ours = judge.manifest.lineage
        shared: list[str] = []
        if ours.base == theirs.base:
            shared.append(f"the base {ours.base}")
        if common := set(ours.data) & set(theirs.data):
            shared.append(f"{len(common)} training files")
        if shared:
            raise BundleError(
                f"judge {judge.manifest.name} and reward model {reward.manifest.name} share "
                f"{' and '.join(shared)}; independence is the point. Take another judge, or set "
                "allow_shared_lineage if you know better"
            )
