"""Proofs at export: our tokens are transformers' own, the ONNX model gives PyTorch's logits."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Any, Final

import numpy as np
import torch

from ares_stream.errors import BundleError, ScoringError
from ares_stream.models.bundles import Parity
from ares_stream.records.interaction import Interaction
from ares_stream.scoring.runtime import OnnxModel
from ares_stream.scoring.templates import compile_template
from ares_stream.scoring.tokenising import InputEncoder, Tokens
from ares_stream.training.architecture import Classifier
from ares_stream.training.checkpoints import Checkpoint
from ares_stream.training.inputs import MAX_UNKNOWN, Inputs, share_of_unknown, texts, turns

TOLERANCE: Final = 1e-3
"""Largest difference of a logit between PyTorch and ONNX Runtime. Exports that are right differ
by 1e-6; those with a wrong mask or position differ by 0.1 and more."""
LENGTHS: Final = ((5, 9, 30), (17,), (64, 3), (11, 12, 13, 14))
_WHOLE: Final = 32_768
"""Nothing of the sample is cut at this length."""


def check_words(checkpoint: Checkpoint, sample: Sequence[Interaction]) -> None:
    """Raise BundleError where the tokenizer has no words for what the sample says."""
    tokenizer = checkpoint.tokenizer
    share = share_of_unknown(
        tokenizer.backend_tokenizer.to_str(), texts(sample), tokenizer.unk_token_id
    )
    if share > MAX_UNKNOWN:
        raise BundleError(
            f"{checkpoint.source}: {share:.0%} of the sample's tokens are unknown to its tokenizer "
            f"(at most {MAX_UNKNOWN:.0%}): it is not the checkpoint's own, or knows another "
            "language; give conversations in that language (--sample)"
        )


def check_tokens(checkpoint: Checkpoint, inputs: Inputs, sample: Sequence[Interaction]) -> None:
    """Raise BundleError where the scorer would not read a conversation of the sample, held now,
    as transformers does, token by token, or refuse what it accepts."""
    now = datetime.now().astimezone()  # The only day that transformers gives to a template.
    encoder = inputs.with_length(_WHOLE).encoder()
    accepted = 0
    for place, given in enumerate(sample):
        item = given.model_copy(update={"occurred_at": now})
        (ours,) = encoder.encode([(item, item.response)])
        theirs = _transformers(checkpoint.tokenizer, inputs, item)
        if theirs is None and isinstance(ours, ScoringError):
            continue
        if theirs is None or isinstance(ours, ScoringError) or ours.ids.tolist() != theirs:
            raise BundleError(
                f"{checkpoint.source}: conversation {place + 1} of the sample becomes other tokens "
                "than in transformers; its chat template or tokenizer does something that bundles "
                "do not: give a template of your own"
            )
        accepted += 1
    if not accepted:
        raise BundleError(
            f"{checkpoint.source}: its chat template refuses every conversation of the sample; "
            "give conversations as it wants them (--sample) or a template of your own"
        )


def _transformers(tokenizer: Any, inputs: Inputs, item: Interaction) -> list[int] | None:
    """Ids that transformers makes; None where its template refuses the conversation."""
    if inputs.chat:
        try:
            found = tokenizer.apply_chat_template(turns(item), tokenize=True)
        except Exception:  # a template is a program, and fails as programs do
            return None
        return [int(number) for number in found["input_ids"]]
    try:
        first = compile_template(inputs.template.first)(item, item.response)
        second = inputs.template.second
        pair = None if second is None else compile_template(second)(item, item.response)
    except ScoringError:
        return None
    encoded = tokenizer(first, pair, add_special_tokens=not inputs.bare)
    return [int(number) for number in encoded["input_ids"]]


def measure(
    module: Classifier,
    onnx: OnnxModel,
    checkpoint: Checkpoint,
    encoder: InputEncoder,
    sample: Sequence[Interaction],
    max_length: int,
) -> Parity:
    """Compare the sample's conversations and random ids up to `max_length`, alone and in padded
    batches, with PyTorch on each alone. Raises BundleError above TOLERANCE."""
    encoded = encoder.encode([(item, item.response) for item in sample])
    real = [item for item in encoded if isinstance(item, Tokens)]
    if not real:
        raise BundleError(f"{checkpoint.source}: its tokenizer refuses every conversation")
    batches = [real, *([item] for item in real), [real[0], real[0]]]
    batches += _random(module, checkpoint, max_length)
    worst, apart, cases = 0.0, 0.0, 0
    for batch in batches:
        try:
            with torch.no_grad():
                each = [module.with_states(**_alone(module, item)) for item in batch]
            expected = [logits.numpy()[0] for logits, _ in each]
            logits, states = onnx.run_with_states(batch)
        except (ScoringError, IndexError, RuntimeError) as error:
            raise BundleError(
                f"{checkpoint.source}: cannot read {max(map(len, batch))} tokens "
                f"({type(error).__name__}); take a smaller --max-length"
            ) from error
        for row, reference in zip(logits, expected, strict=True):
            worst = max(worst, float(np.max(np.abs(row - reference))))
            cases += 1
        if states is not None:
            theirs = np.stack([state.numpy()[0] for _, state in each])
            apart = max(apart, float(np.abs(states - theirs).max() / np.abs(theirs).max()))
    if not worst <= TOLERANCE:
        raise BundleError(
            f"{checkpoint.source}: the ONNX model differs from PyTorch by {worst:.2g} "
            f"(allowed {TOLERANCE:g}); this architecture does not export correctly"
        )
    if not apart <= TOLERANCE:
        raise BundleError(
            f"{checkpoint.source}: the ONNX model's states differ from PyTorch's by {apart:.2g} of "
            f"the largest (allowed {TOLERANCE:g}); this architecture does not export correctly"
        )
    return Parity(max_abs_difference=worst, cases=cases)


def _random(module: Classifier, checkpoint: Checkpoint, max_length: int) -> list[list[Tokens]]:
    """Ids that real text seldom has, at lengths up to the longest."""
    generator = np.random.default_rng(0)
    special = set(checkpoint.tokenizer.all_special_ids)
    ids = np.array([i for i in range(checkpoint.vocabulary) if i not in special], dtype=np.int64)
    kinds = module.segment_kinds or 1

    def tokens(length: int) -> Tokens:
        types = np.sort(generator.integers(0, kinds, length)).astype(np.int64)
        return Tokens(generator.choice(ids, length), types)

    lengths = (*LENGTHS, (max_length,))
    return [[tokens(min(item, max_length)) for item in group] for group in lengths]


def _alone(module: Classifier, item: Tokens) -> dict[str, torch.Tensor]:
    ids = torch.from_numpy(item.ids)[None]
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    if module.segment_kinds:
        inputs["token_type_ids"] = torch.from_numpy(item.types)[None]
    return inputs
