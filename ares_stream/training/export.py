"""From a Hugging Face sequence classifier to a bundle: ONNX, tokenizer, template, parity.

The model is loaded from safetensors only and without remote code. Decoders are read at the last
token that the attention mask shows, so that padding on the right never matters.
"""

from __future__ import annotations

import contextlib
import io
import json
import logging
import tempfile
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from ares_stream.errors import BundleError, ScoringError
from ares_stream.models.bundles import (
    MODEL,
    PAIR,
    TOKENIZER,
    Bundle,
    Calibration,
    InputTemplate,
    Kind,
    Lineage,
    Manifest,
    Outputs,
    Parity,
    file_digest,
    write_bundle,
)
from ares_stream.records.base import digest
from ares_stream.records.interaction import Interaction
from ares_stream.scoring.offline import Progress, reward_reference
from ares_stream.scoring.runtime import OnnxModel
from ares_stream.scoring.tokenising import Tokens
from ares_stream.training.architecture import Classifier

TOLERANCE: Final = 1e-3
"""Largest difference of a logit between PyTorch and ONNX Runtime. Exports that are right differ
by 1e-6; those with a wrong mask or position differ by 0.1 and more."""
PARITY_LENGTHS: Final = ((5, 9, 30), (17,), (64, 3), (11, 12, 13, 14))


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A loaded classifier and what its configuration says of its labels."""

    source: str
    model: Any
    tokenizer: Any

    @property
    def labels(self) -> list[str]:
        """Label names by index."""
        names = self.model.config.id2label
        return [str(names[index]) for index in sorted(names)]


def load_checkpoint(source: str | Path) -> Checkpoint:
    """Load a sequence classifier from a directory or a hub id. Raises BundleError."""
    try:
        model = AutoModelForSequenceClassification.from_pretrained(
            str(source), trust_remote_code=False, use_safetensors=True, dtype=torch.float32
        )
        tokenizer = AutoTokenizer.from_pretrained(str(source), trust_remote_code=False)
    except (OSError, ValueError) as error:
        raise BundleError(
            f"{source}: not a sequence classifier with safetensors and a tokenizer: {error}"
        ) from error
    if not getattr(tokenizer, "is_fast", False):
        raise BundleError(f"{source}: its tokenizer has no tokenizer.json; convert it first")
    return Checkpoint(str(source), model.eval(), tokenizer)


def export_bundle(
    kind: Kind,
    source: str | Path,
    out: Path,
    *,
    name: str,
    labels: Sequence[str] = (),
    max_length: int = 512,
    template: tuple[str, str | None] | None = None,
    reference: Sequence[Interaction] = (),
    calibration: Calibration | None = None,
    lineage: Lineage | None = None,
    metrics: dict[str, float] | None = None,
    progress: Progress | None = None,
) -> Bundle:
    """Export `source` to the bundle directory `out`.

    `labels` are names or indices of the harmful labels, needed when there are more than two.
    `template` overrides the chat template or, without one, the pair (prompt, response).
    `reference` are benign interactions, needed for a reward model; `progress` counts them.
    Without a `lineage` the base is the source itself. Raises BundleError when the export
    differs from PyTorch by more than TOLERANCE, the model cannot read `max_length` tokens, or
    anything needed is missing; InputError when a reference cannot be scored.
    """
    if out.exists():
        raise BundleError(f"{out}: exists already; bundles are immutable, choose another name")
    if kind == "reward" and len(reference) < 2:
        raise BundleError("a reward bundle needs benign reference conversations (--reference)")
    checkpoint = load_checkpoint(source)
    with tempfile.TemporaryDirectory(prefix="ares-export-") as folder:
        staging = Path(folder)
        chat = _save_tokenizer(checkpoint.tokenizer, staging / TOKENIZER, template is None)
        first, second = template or (chat, None) if chat or template else PAIR
        manifest = Manifest(
            name=name,
            kind=kind,
            template=InputTemplate(first=first, second=second, max_length=max_length),
            outputs=_outputs(kind, checkpoint, labels),
            lineage=lineage or Lineage(base=base_identity(source)),
            calibration=calibration or Calibration(),
            metrics=metrics or {},
            versions={"torch": torch.__version__.split("+")[0]},
        )
        module = Classifier(checkpoint.model).eval()
        _export(module, checkpoint, staging / MODEL)
        draft = Bundle(staging, manifest, "")
        onnx = OnnxModel(draft, "cpu")
        manifest = manifest.model_copy(
            update={
                "parity": _parity(module, onnx, checkpoint, max_length),
                "reference": reward_reference(draft, reference, progress)
                if kind == "reward"
                else None,
            }
        )
        files = {item.name: item for item in staging.iterdir()}
        return write_bundle(out, manifest, files)


def base_identity(source: str | Path) -> str:
    """What two models share when they share a base: a digest of a directory's weights,
    wherever it lies, or a hub id."""
    folder = Path(source)
    if not folder.is_dir():
        return str(source)[-256:]
    weights = sorted(folder.glob("*.safetensors"))
    return f"weights:{digest([file_digest(file) for file in weights])}"


def _outputs(kind: Kind, checkpoint: Checkpoint, labels: Sequence[str]) -> Outputs:
    names = checkpoint.labels
    if kind == "reward":
        if len(names) != 1:
            raise BundleError(f"{checkpoint.source}: {len(names)} labels; a reward model has one")
        return Outputs(activation="identity", labels=(0,))
    chosen = tuple(_label(label, names, checkpoint.source) for label in labels)
    several = checkpoint.model.config.problem_type == "multi_label_classification"
    if len(names) == 1:
        return Outputs(activation="sigmoid", labels=(0,))
    if not chosen and len(names) > 2:
        raise BundleError(
            f"{checkpoint.source}: which labels are harmful? Name them with --label: "
            f"{', '.join(names)}"
        )
    return Outputs(activation="sigmoid" if several else "softmax", labels=chosen or (1,))


def _label(label: str, names: Sequence[str], source: str) -> int:
    if label in names:
        return names.index(label)
    if label.isdecimal() and int(label) < len(names):
        return int(label)
    raise BundleError(f"{source}: no label {label}; there are {', '.join(names)}")


def _save_tokenizer(tokenizer: Any, path: Path, use_chat: bool) -> str:
    """Write tokenizer.json; returns the chat template as jinja source, or ""."""
    content = json.loads(tokenizer.backend_tokenizer.to_str())
    template = tokenizer.chat_template if use_chat else None
    if isinstance(template, str) and template:
        # The template writes the special tokens itself; a post-processor would add them twice.
        content["post_processor"] = None
        tokens = {
            "bos_token": tokenizer.bos_token or "",
            "eos_token": tokenizer.eos_token or "",
        }
        settings = "".join(
            f"{{%- set {name} = {json.dumps(value)} -%}}" for name, value in tokens.items()
        )
        template = settings + template
    else:
        template = ""
    path.write_text(json.dumps(content, ensure_ascii=False))
    return template


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """The exporter prints its progress and warns of what nobody can change."""
    loggers = [logging.getLogger(item) for item in ("torch.onnx", "onnxscript", "onnx_ir")]
    levels = [logger.level for logger in loggers]
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        try:
            yield
        finally:
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)


def _export(module: Classifier, checkpoint: Checkpoint, path: Path) -> None:
    names = ["input_ids", "attention_mask"]
    if "token_type_ids" in checkpoint.tokenizer.model_input_names and not module.decoder:
        names.append("token_type_ids")
    shape = (2, 12)
    example = {name: torch.ones(shape, dtype=torch.int64) for name in names}
    if "token_type_ids" in example:
        example["token_type_ids"] = torch.zeros(shape, dtype=torch.int64)
    axes = {0: torch.export.Dim.DYNAMIC, 1: torch.export.Dim.DYNAMIC}
    with _quiet(), torch.no_grad():
        try:
            program = torch.onnx.export(
                module,
                (),
                kwargs=example,
                dynamo=True,
                input_names=names,
                output_names=["logits"],
                dynamic_shapes={name: dict(axes) for name in names},
                verbose=False,
            )
        except Exception as error:  # the exporter raises what the model's code raised
            raise BundleError(
                f"{checkpoint.source}: PyTorch cannot export it: {type(error).__name__}: {error}"
            ) from error
        assert program is not None  # noqa: S101 - dynamo returns the program
        program.save(str(path), external_data=_is_large(module))


def _is_large(module: Classifier) -> bool:
    """A protobuf file ends at 2 GiB; larger weights go beside it."""
    return sum(item.numel() * item.element_size() for item in module.parameters()) > 1_800_000_000


def _parity(module: Classifier, onnx: OnnxModel, checkpoint: Checkpoint, max_length: int) -> Parity:
    """Compare on random ids of mixed lengths, padded, against PyTorch without padding."""
    generator = np.random.default_rng(0)
    vocabulary = int(checkpoint.model.config.vocab_size)
    worst, cases = 0.0, 0
    for lengths in (*PARITY_LENGTHS, (max_length,)):
        batch = [
            Tokens(
                generator.integers(0, vocabulary, length).astype(np.int64),
                np.zeros(length, dtype=np.int64),
            )
            for length in (min(item, max_length) for item in lengths)
        ]
        try:
            with torch.no_grad():
                expected = [module(*_alone(item)).numpy()[0] for item in batch]
            logits = onnx.run(batch)
        except (ScoringError, IndexError, RuntimeError) as error:
            raise BundleError(
                f"{checkpoint.source}: cannot read {max(lengths)} tokens "
                f"({type(error).__name__}); take a smaller --max-length"
            ) from error
        for row, reference in zip(logits, expected, strict=True):
            worst = max(worst, float(np.max(np.abs(row - reference))))
            cases += 1
    if not worst <= TOLERANCE:
        raise BundleError(
            f"{checkpoint.source}: the ONNX model differs from PyTorch by {worst:.2g} "
            f"(allowed {TOLERANCE:g}); this architecture does not export correctly"
        )
    return Parity(max_abs_difference=worst, cases=cases)


def _alone(item: Tokens) -> tuple[torch.Tensor, torch.Tensor]:
    ids = torch.from_numpy(item.ids)[None]
    return ids, torch.ones_like(ids)
