"""An ONNX classifier that exists already, as a bundle: checked as an export is, without torch.

Nobody can run the model that the ONNX file came from, so the outputs that it gave elsewhere are
the proof (`Expected`): the bundle must give the same. Beside that, a batch of several lengths must
give what each conversation gives alone, and the tokenizer must know the words.
"""

from __future__ import annotations

import contextlib
import json
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
from ares_stream.files import unwritable
from ares_stream.models.bundles import (
    MODEL,
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
from ares_stream.training.samples import sample_conversations

TOLERANCE: Final = 1e-3
"""Of a logit; the same as at export."""
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
        weights = tuple(
            file
            for suffix in (".data", "_data")
            if (file := model.with_name(model.name + suffix)).is_file()
        )
        for file in weights:
            check_fetched(file)
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
    return Candidate(source, kind, inputs, _outputs(source, kind, names, labels, activation), names)


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
    return Parity(max_abs_difference=worst, cases=len(expected))


def _logits(draft: Bundle, rows: Sequence[Tokens]) -> NDArray[np.float32]:
    """Each alone; as a batch it must say the same."""
    onnx = OnnxModel(draft, "cpu")
    name = draft.manifest.name
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
    chosen = tuple(_label(label, names, source.model) for label in labels)
    if kind == "reward":
        if len(names) != 1 and len(chosen) != 1:
            raise BundleError(
                f"{source.model}: gives {len(names)} outputs; name the one that is the reward "
                "(--label)"
            )
        return Outputs(activation="identity", labels=chosen or (0,))
    if not chosen and len(names) > 2:
        raise BundleError(
            f"{source.model}: which labels are harmful? Name them with --label: {', '.join(names)}"
        )
    several = source.config.get("problem_type") == "multi_label_classification"
    usual: Activation = "sigmoid" if several or len(names) == 1 else "softmax"
    return Outputs(activation=activation or usual, labels=chosen or (len(names) - 1,))


def _label(label: str, names: Sequence[str], source: Path) -> int:
    if label in names:
        return names.index(label)
    if label.isdecimal() and int(label) < len(names):
        return int(label)
    raise BundleError(f"{source}: no label {label}; there are {', '.join(names)}")


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
            try:
                content = json.loads(file.read_bytes())
            except ValueError:
                raise BundleError(f"{file}: is no JSON") from None
            return content if isinstance(content, dict) else {}
    return {}
