"""An ONNX classifier that exists already, as a bundle: checked as an export is, without torch.

Nobody can run the model that the ONNX file came from, so the outputs that it gave elsewhere are
the proof (`Expected`): the bundle must give the same. Beside that, a batch of several lengths must
give what each conversation gives alone, and the tokenizer must know the words.
"""

from __future__ import annotations

import contextlib
import mmap
import re
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from ares_stream.errors import BundleError, ScoringError
from ares_stream.files import read_json, unwritable
from ares_stream.models.bundles import (
    DOMAIN,
    MANIFEST,
    MODEL,
    SIGNATURE,
    TOKENIZER,
    Activation,
    Bundle,
    Kind,
    Lineage,
    Manifest,
    Outputs,
    Parity,
    Windows,
    file_digest,
    write_bundle,
)
from ares_stream.models.weights import check_fetched
from ares_stream.records.interaction import Interaction
from ares_stream.scoring.model import read_outputs
from ares_stream.scoring.offline import Progress, reward_reference
from ares_stream.scoring.runtime import OnnxModel
from ares_stream.scoring.tokenising import InputEncoder, Tokens
from ares_stream.training.domain import DomainRows, fit_domain
from ares_stream.training.examples import Expected
from ares_stream.training.inputs import MAX_UNKNOWN, Inputs, share_of_unknown, texts
from ares_stream.training.labels import harmful_labels, label_number
from ares_stream.training.samples import sample_conversations

TOLERANCE: Final = 1e-3
"""Of a logit; the same as at export."""
SUM_SLACK: Final = 1e-3
"""Of probabilities of 16 bits."""
LEAST_ROWS: Final = 3
"""Fewer may lie between 0 and 1 by chance."""
ENDS_IN_ONE: Final = (
    "its outputs look like probabilities already; say --activation probability, or softmax or "
    "sigmoid if they are logits"
)
_LOCATION: Final = re.compile(rb"\x0a\x08location\x12")
_ONE_BYTE: Final = 0x7F
_PLACES: Final = ("model.onnx", "onnx/model.onnx")
_DRY: Final = 6


@dataclass(frozen=True, slots=True)
class OnnxSource:
    """An ONNX file, the files of weights beside it, and what its directory says of it."""

    model: Path
    weights: tuple[Path, ...]
    tokenizer: Path
    config: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def find(cls, path: Path, tokenizer: Path | None = None) -> OnnxSource:
        """From a file or the directory that holds it. Raises BundleError naming what is missing."""
        if path.is_dir():
            found = [path / place for place in _PLACES if (path / place).is_file()]
            if not found:
                raise BundleError(f"{path}: holds no model.onnx; name the file")
            model = found[0]
        elif path.is_file():
            model = path
        else:
            raise BundleError(f"{path}: no such file; name an ONNX file or its directory")
        check_fetched(model)
        weights = tuple(_weights(model, name) for name in sorted(external_files(model)))
        homes = (model.parent, model.parent.parent) if tokenizer is None else (tokenizer,)
        for home in homes:
            file = home if home.is_file() else home / "tokenizer.json"
            if file.is_file():
                check_fetched(file)
                return cls(model, weights, file, _config(file.parent, model.parent))
        raise BundleError(
            f"{homes[0]}: holds no tokenizer.json; name the tokenizer that the model was trained "
            "with (--tokenizer)"
        )

    @property
    def labels(self) -> list[str]:
        """Label names by index, where config.json tells them."""
        names = self.config.get("id2label")
        if not isinstance(names, dict):
            return []
        try:
            return [str(names[key]) for key in sorted(names, key=int)]
        except ValueError:
            return []


def _weights(model: Path, name: str) -> Path:
    file = model.with_name(name) if name == Path(name).name else None
    if file is None or name in (MODEL, TOKENIZER, DOMAIN, MANIFEST, SIGNATURE):
        raise BundleError(
            f"{model}: keeps weights in {name[:128]!r}; save it with its weights in one file "
            "beside it, such as model.onnx.data"
        )
    if not file.is_file():
        raise BundleError(f"{model}: its weights {name} are not beside it; fetch them")
    check_fetched(file)
    return file


@dataclass(frozen=True, slots=True)
class Reading:
    """One conversation in a dry run: tokens, the model's outputs, and the number read of them."""

    tokens: int
    outputs: tuple[float, ...]
    value: float


@dataclass(frozen=True, slots=True)
class Candidate:
    """An imported model before it is a bundle."""

    source: OnnxSource
    kind: Kind
    inputs: Inputs
    outputs: Outputs
    labels: list[str]
    assumed: bool = False
    """Whether nobody said what makes probabilities of the outputs."""


def candidate(
    source: OnnxSource,
    kind: Kind,
    *,
    labels: Sequence[str] = (),
    activation: Activation | None = None,
    template: tuple[str, str | None] | None = None,
    max_length: int = 512,
    windows: Windows | None = None,
) -> Candidate:
    """What the model would be as a bundle. Raises BundleError where labels do not fit."""
    inputs = Inputs.from_files(source.tokenizer, max_length, template).with_windows(windows)
    with _staged(source, inputs, kind) as draft:
        width = _logits(draft, _encoded(draft, _conversations(()))[:1]).shape[1]
    names = source.labels or [str(number) for number in range(width)]
    if len(names) != width:
        raise BundleError(
            f"{source.model}: gives {width} outputs, config.json names {len(names)} labels"
        )
    outputs = _outputs(source, kind, names, labels, activation)
    assumed = kind == "harm" and activation is None
    return Candidate(source, kind, inputs, outputs, names, assumed)


def try_out(found: Candidate, sample: Sequence[Interaction] = ()) -> list[Reading]:
    """What the model says of the first conversations; writes nothing."""
    with _staged(found.source, found.inputs, found.kind) as draft:
        rows = _encoded(draft, _conversations(sample)[:_DRY])
        logits = _logits(draft, rows)
    values = read_outputs(logits, found.outputs)
    return [
        Reading(len(row), tuple(map(float, outputs)), float(value))
        for row, outputs, value in zip(rows, logits, values, strict=True)
    ]


def import_onnx(
    found: Candidate,
    out: Path,
    expected: Sequence[Expected],
    *,
    name: str,
    tolerance: float = TOLERANCE,
    reference: Sequence[Interaction] = (),
    domain: DomainRows | None = None,
    lineage: Lineage | None = None,
    progress: Progress | None = None,
) -> Bundle:
    """Check the model against `expected` and write it as a bundle.

    Raises BundleError when its outputs differ from those by more than `tolerance`, depend on the
    batch, or its tokenizer does not know the conversations; nothing is written then.
    """
    if out.exists():
        raise BundleError(f"{out}: exists already; bundles are immutable, choose another name")
    if not expected:
        raise BundleError("no expected outputs; nothing would prove that the model is read rightly")
    asked = [item.interaction for item in expected]
    _check_words(found, asked)
    with _writing(out), _staged(found.source, found.inputs, found.kind) as draft:
        draft = replace(
            draft, manifest=draft.manifest.model_copy(update={"outputs": found.outputs})
        )
        rows = _encoded(draft, asked)
        parity = _compare(found, expected, _logits(draft, rows), tolerance)
        covered = None if domain is None else fit_domain(draft, domain, draft.path, progress)
        manifest = Manifest(
            name=name,
            kind=found.kind,
            template=found.inputs.template,
            outputs=found.outputs,
            lineage=lineage or Lineage(base=f"onnx:{file_digest(found.source.model)}"),
            reference=reward_reference(draft, reference, progress)
            if found.kind == "reward"
            else None,
            parity=parity,
            domain=covered,
        )
        return write_bundle(out, manifest, {item.name: item for item in draft.path.iterdir()})


def _compare(
    found: Candidate,
    expected: Sequence[Expected],
    logits: NDArray[np.float32],
    tolerance: float,
) -> Parity:
    values = read_outputs(logits, found.outputs)
    worst, place = 0.0, 0
    for number, (item, row, value) in enumerate(zip(expected, logits, values, strict=True), 1):
        if item.logits is None:
            assert item.score is not None  # noqa: S101 - the reader asks for one of the two
            difference = abs(float(value) - item.score)
        elif len(item.logits) != len(row):
            raise BundleError(
                f"expected row {number}: has {len(item.logits)} logits, the model gives {len(row)}"
            )
        else:
            difference = float(np.max(np.abs(row - np.asarray(item.logits))))
        if not difference <= worst:
            worst, place = difference, number
    if not worst <= tolerance:
        raise BundleError(
            f"{found.source.model}: differs from expected row {place} by {worst:.2g} (allowed "
            f"{tolerance:g}); see with --dry-run which template, label or activation it is"
        )
    # Scores prove how outputs are read, the outputs themselves do not.
    if (
        found.assumed
        and any(item.logits is not None for item in expected)
        and looks_like_probabilities(logits)
    ):
        raise BundleError(f"{found.source.model}: {ENDS_IN_ONE}")
    return Parity(max_abs_difference=worst, cases=len(expected))


def _logits(draft: Bundle, rows: Sequence[Tokens]) -> NDArray[np.float32]:
    """Each alone; as a batch it must say the same."""
    name = draft.manifest.name
    try:
        onnx = OnnxModel(draft, "cpu")
    except BundleError as error:
        reason = error.unmasked.replace(str(draft.model), name)
        raise BundleError(reason) from None
    try:
        alone = np.concatenate([onnx.run([row]) for row in rows])
        together = onnx.run(rows)
    except ScoringError as error:
        raise BundleError(
            f"{name}: cannot read {len(rows)} conversations of {min(map(len, rows))} to "
            f"{max(map(len, rows))} tokens ({error}); it needs dynamic axes for batch and length, "
            "or a smaller --max-length"
        ) from None
    if not np.isfinite(alone).all():
        raise BundleError(f"{name}: gives NaN or infinity for a plain conversation")
    difference = float(np.max(np.abs(alone - together)))
    if not difference <= TOLERANCE:
        raise BundleError(
            f"{name}: a conversation alone and the same one in a padded batch differ by "
            f"{difference:.2g} (allowed {TOLERANCE:g}); the model does not heed attention_mask"
        )
    return alone


def _encoded(draft: Bundle, conversations: Sequence[Interaction]) -> list[Tokens]:
    encoded = InputEncoder(draft).encode([(item, item.response) for item in conversations])
    rows: list[Tokens] = []
    for number, item in enumerate(encoded, 1):
        if isinstance(item, ScoringError):
            raise BundleError(f"{draft.manifest.name}: conversation {number}: {item}")
        rows.append(item)
    return rows


def _conversations(sample: Sequence[Interaction]) -> list[Interaction]:
    if sample:
        return list(sample)
    own = sample_conversations(datetime.now().astimezone())
    # Those that every template takes.
    return [item for item in own if len(item.messages) == 1]


def _check_words(found: Candidate, conversations: Sequence[Interaction]) -> None:
    share = share_of_unknown(found.inputs.tokenizer, texts(conversations))
    if share > MAX_UNKNOWN:
        raise BundleError(
            f"{found.source.tokenizer}: {share:.0%} of the tokens of the expected rows are unknown "
            f"(at most {MAX_UNKNOWN:.0%}); it is not the model's own, or knows another language"
        )


def _outputs(
    source: OnnxSource,
    kind: Kind,
    names: Sequence[str],
    labels: Sequence[str],
    activation: Activation | None,
) -> Outputs:
    if kind == "reward":
        wanted = tuple(label_number(source.model, names, label) for label in labels)
        if len(names) != 1 and len(wanted) != 1:
            raise BundleError(
                f"{source.model}: gives {len(names)} outputs; name the one that is the reward "
                "(--label)"
            )
        return Outputs(activation="identity", labels=wanted or (0,))
    chosen = harmful_labels(source.model, names, labels)
    several = source.config.get("problem_type") == "multi_label_classification"
    usual: Activation = "sigmoid" if several or len(names) == 1 else "softmax"
    return Outputs(activation=activation or usual, labels=chosen)


def looks_like_probabilities(logits: NDArray[np.float32]) -> bool:
    """Whether outputs [rows, labels] are probabilities already: rows that add up to 1, or numbers
    that differ and all lie inside of 0 and 1. Logits of several texts hardly do."""
    if len(logits) < LEAST_ROWS or logits.min() < 0.0 or logits.max() > 1.0:
        return False
    if logits.shape[1] > 1 and bool(np.all(np.abs(logits.sum(axis=1) - 1.0) < SUM_SLACK)):
        return True
    return float(np.ptp(logits, axis=0).max()) > SUM_SLACK


def external_files(model: Path) -> set[str]:
    """Names of the files that an ONNX model keeps its weights in, beside it: the values of
    `location` among the external data of its tensors (onnx.proto3, TensorProto)."""
    if not model.stat().st_size:
        return set()
    found: set[str] = set()
    with (
        model.open("rb") as stream,
        mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as content,
    ):
        for entry in _LOCATION.finditer(content):
            size, place = content[entry.end()], entry.end() + 1
            if size > _ONE_BYTE:  # A length of two bytes: a name is no longer.
                size, place = size - _ONE_BYTE - 1 + (content[place] << 7), place + 1
            with contextlib.suppress(UnicodeDecodeError):
                found.add(content[place : place + size].decode())
    return found


@contextlib.contextmanager
def _staged(source: OnnxSource, inputs: Inputs, kind: Kind) -> Iterator[Bundle]:
    with tempfile.TemporaryDirectory(prefix="ares-import-") as folder:
        staging = Path(folder)
        shutil.copyfile(source.model, staging / MODEL)
        for file in source.weights:
            shutil.copyfile(file, staging / file.name)
        draft = inputs.draft(staging, kind)
        manifest = draft.manifest.model_copy(update={"name": str(source.model)})
        yield replace(draft, manifest=manifest)


@contextlib.contextmanager
def _writing(out: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise unwritable(out, error, BundleError) from None


def _config(*folders: Path) -> dict[str, Any]:
    for folder in folders:
        file = folder / "config.json"
        if file.is_file():
            return read_json(file, dict[str, Any], error=BundleError)
    return {}
