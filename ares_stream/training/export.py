"""From a Hugging Face sequence classifier to a bundle: ONNX, tokenizer, template, parity.

The model is loaded from safetensors only and without remote code. Decoders are read at the last
token that the attention mask shows, so that padding on the right never matters.
"""

from __future__ import annotations

import contextlib
import io
import logging
import tempfile
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import replace
from datetime import datetime
from pathlib import Path

import torch

from ares_stream.errors import BundleError
from ares_stream.files import unwritable
from ares_stream.models.bundles import (
    MODEL,
    Bundle,
    Calibration,
    Kind,
    Lineage,
    Manifest,
    Outputs,
    Windows,
    file_digest,
    write_bundle,
)
from ares_stream.records.base import digest
from ares_stream.records.interaction import Interaction
from ares_stream.scoring.offline import Progress, reward_reference
from ares_stream.scoring.runtime import POOLED, OnnxModel
from ares_stream.scoring.tokenising import InputEncoder
from ares_stream.training.architecture import Classifier, WithStates
from ares_stream.training.checkpoints import (
    Checkpoint,
    first_line,
    load_checkpoint,
)
from ares_stream.training.domain import MIN_REFERENCE, DomainRows, fit_domain
from ares_stream.training.inputs import Inputs
from ares_stream.training.labels import harmful_labels
from ares_stream.training.parity import check_tokens, check_words, measure
from ares_stream.training.samples import sample_conversations

_SAMPLED = 64
"""So many conversations of a sample are read by the checks."""


def export_bundle(
    kind: Kind,
    source: str | Path,
    out: Path,
    *,
    name: str,
    labels: Sequence[str] = (),
    max_length: int = 512,
    template: tuple[str, str | None] | None = None,
    windows: Windows | None = None,
    like: Bundle | None = None,
    sample: Sequence[Interaction] = (),
    reference: Sequence[Interaction] = (),
    domain: DomainRows | None = None,
    calibration: Calibration | None = None,
    lineage: Lineage | None = None,
    metrics: dict[str, float] | None = None,
    progress: Progress | None = None,
) -> Bundle:
    """Export `source` to the bundle directory `out`.

    `labels` are names or indices of the harmful labels, needed when there are more than two.
    `template` overrides the chat template or, without one, the pair (prompt, response); `like`
    takes template, length and special tokens from another bundle instead. With `windows` an
    answer that does not fit is read whole.
    `reference` are benign interactions, needed for a reward model; `progress` counts them.
    With `domain` the bundle says which conversations are unlike those; a reward model gets one of
    its reference where that has MIN_REFERENCE conversations.
    The checks read `sample`, else the reference, else English sentences of our own.
    Without a `lineage` the base is the source itself.

    Raises BundleError when anything of the checkpoint is missing or not its own, the tokens are
    not those of transformers, the model cannot read `max_length` tokens, the ONNX model differs
    from PyTorch, or the disk is full; InputError when a reference cannot be scored.
    """
    if out.exists():
        raise BundleError(f"{out}: exists already; bundles are immutable, choose another name")
    if kind == "reward" and len(reference) < 2:
        raise BundleError("a reward bundle needs benign reference conversations (--reference)")
    if kind == "reward" and domain is None and len(reference) >= MIN_REFERENCE:
        domain = DomainRows.split(reference)
    if domain is not None:
        domain.check()
    checkpoint = load_checkpoint(source)
    outputs = _outputs(kind, checkpoint, labels)
    inputs = (
        Inputs.of(checkpoint.tokenizer, max_length, template) if like is None else Inputs.like(like)
    )
    max_length = inputs.template.max_length
    if windows is not None:
        inputs = inputs.with_windows(windows)
    own = sample_conversations(datetime.now().astimezone())
    tried = [*(sample or reference)[:_SAMPLED]]
    check_words(checkpoint, tried or own)
    # Ours have every shape; of the others there are those that the model will meet.
    check_tokens(checkpoint, inputs, [*tried, *own])
    with _writing(out), tempfile.TemporaryDirectory(prefix="ares-export-") as folder:
        staging = Path(folder)
        module = Classifier(checkpoint.model, checkpoint.tokenizer).eval()
        _export(module, checkpoint, staging / MODEL, states=domain is not None)
        draft = inputs.draft(staging, kind)
        draft = replace(draft, manifest=draft.manifest.model_copy(update={"outputs": outputs}))
        onnx = OnnxModel(draft, "cpu", states=domain is not None)
        parity = measure(module, onnx, checkpoint, InputEncoder(draft), [*tried, *own], max_length)
        found = None if domain is None else fit_domain(draft, domain, staging, progress)
        manifest = Manifest(
            name=name,
            kind=kind,
            template=inputs.template,
            outputs=outputs,
            lineage=lineage or Lineage(base=base_identity(source)),
            calibration=calibration or Calibration(),
            reference=reward_reference(draft, reference, progress) if kind == "reward" else None,
            parity=parity,
            domain=found,
            metrics=metrics or {},
            versions={"torch": torch.__version__.split("+")[0]},
        )
        files = {item.name: item for item in staging.iterdir()}
        return write_bundle(out, manifest, files)


@contextlib.contextmanager
def _writing(out: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise unwritable(out, error, BundleError) from None


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
    chosen = harmful_labels(checkpoint.source, names, labels)
    several = checkpoint.model.config.problem_type == "multi_label_classification"
    one = several or len(names) == 1
    return Outputs(activation="sigmoid" if one else "softmax", labels=chosen)


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


def _export(module: Classifier, checkpoint: Checkpoint, path: Path, *, states: bool) -> None:
    names = ["input_ids", "attention_mask"]
    if module.segment_kinds:
        names.append("token_type_ids")
    shape = (2, 12)
    example = {name: torch.ones(shape, dtype=torch.int64) for name in names}
    if "token_type_ids" in example:
        example["token_type_ids"] = torch.zeros(shape, dtype=torch.int64)
    axes = {0: torch.export.Dim.DYNAMIC, 1: torch.export.Dim.DYNAMIC}
    with _quiet(), torch.no_grad():
        try:
            program = torch.onnx.export(
                WithStates(module) if states else module,
                (),
                kwargs=example,
                dynamo=True,
                input_names=names,
                output_names=["logits", POOLED] if states else ["logits"],
                dynamic_shapes={name: dict(axes) for name in names},
                verbose=False,
            )
        except Exception as error:  # the exporter raises what the model's code raised
            raise BundleError(
                f"{checkpoint.source}: PyTorch cannot export it ({type(error).__name__}): "
                f"{first_line(error)}"
            ) from error
        assert program is not None  # noqa: S101 - dynamo returns the program
        program.save(str(path), external_data=_is_large(module))


def _is_large(module: Classifier) -> bool:
    """A protobuf file ends at 2 GiB; larger weights go beside it."""
    return sum(item.numel() * item.element_size() for item in module.parameters()) > 1_800_000_000
