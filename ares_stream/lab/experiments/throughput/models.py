"""The models of the benchmarks: BERTs with random weights, the usual one of MiniLM-L6's size, and
one that computes nothing; each is judge and reward model both. And the conversations that they
read."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final, Literal

import numpy as np

from ares_stream.models.bundles import (
    PAIR,
    Bundle,
    Calibration,
    InputTemplate,
    Lineage,
    Manifest,
    Outputs,
    RewardReference,
    load_bundle,
    write_bundle,
)
from ares_stream.records.interaction import Interaction, Message, Policy

MAX_LENGTH: Final = 256
MEAN_LENGTH: Final = 159
SIGMA: Final = 0.6
"""Of the logarithm of the length: chats are short, with a long tail."""
VOCABULARY: Final = 8000
Size = Literal["20M", "110M"]
SHAPES: Final[Mapping[Size, tuple[int, int]]] = {"20M": (6, 384), "110M": (12, 768)}
"""Layers and width: those of MiniLM-L6 and of BERT base; twelve heads, as both have."""
SAFE: Final = Calibration(intercept=-3.0)
"""The judges find nearly everything safe, as they do in production: a coupled failure and a
contested answer are copied to a second topic with their text."""


@dataclass(frozen=True, slots=True)
class Pair:
    """A judge and a reward model that share tokenizer and template."""

    judge: Bundle
    reward: Bundle


def null_pair(folder: Path) -> Pair:
    """Models that compute nothing: what is left is the host's own cost. Made once."""
    if not _made(folder, "null-judge", "null-reward"):
        with tempfile.TemporaryDirectory() as scratch:
            model, tokenizer = Path(scratch, "null.onnx"), Path(scratch, "tokenizer.json")
            _write_null(model)
            learnt_tokenizer().save(str(tokenizer))
            _write_pair(folder, "null-", model, tokenizer)
    return _load(folder, "null-")


def bert_pair(folder: Path, size: Size = "20M") -> Pair:
    """Random weights; exported once by torch."""
    if not _made(folder, "judge", "reward"):
        with tempfile.TemporaryDirectory() as scratch:
            exported = _export(Path(scratch), *SHAPES[size])
            _write_pair(folder, "", exported.model, exported.tokenizer)
    return _load(folder, "")


def _made(folder: Path, *names: str) -> bool:
    return all((folder / name / "bundle.json").is_file() for name in names)


def _load(folder: Path, prefix: str) -> Pair:
    return Pair(load_bundle(folder / f"{prefix}judge"), load_bundle(folder / f"{prefix}reward"))


def _write_pair(folder: Path, prefix: str, model: Path, tokenizer: Path) -> None:
    first, second = PAIR
    for kind in ("harm", "reward"):
        name = f"{prefix}{'judge' if kind == 'harm' else 'reward'}"
        manifest = Manifest(
            name=name,
            kind="harm" if kind == "harm" else "reward",
            template=InputTemplate(first=first, second=second, max_length=MAX_LENGTH),
            outputs=Outputs(activation="sigmoid" if kind == "harm" else "identity", labels=(0,)),
            calibration=SAFE if kind == "harm" else Calibration(),
            lineage=Lineage(base="random weights"),
            reference=RewardReference(version="0" * 64, count=2, scores=(-1.0, 1.0)),
        )
        write_bundle(folder / name, manifest, {"model.onnx": model, "tokenizer.json": tokenizer})


def _export(scratch: Path, layers: int, width: int) -> Bundle:
    import torch
    from transformers import BertConfig, BertForSequenceClassification, PreTrainedTokenizerFast

    from ares_stream.training.checkpoints import quiet_transformers
    from ares_stream.training.export import export_bundle

    torch.manual_seed(0)
    tokenizer = learnt_tokenizer()
    config: dict[str, Any] = {
        "vocab_size": tokenizer.get_vocab_size(),
        "hidden_size": width,
        "intermediate_size": 4 * width,
        "num_hidden_layers": layers,
        "num_attention_heads": 12,
        "num_labels": 1,
    }
    wrapped: Any = PreTrainedTokenizerFast
    with quiet_transformers():
        BertForSequenceClassification(BertConfig(**config)).save_pretrained(scratch / "checkpoint")
        wrapped(
            tokenizer_object=tokenizer,
            model_input_names=["input_ids", "token_type_ids", "attention_mask"],
        ).save_pretrained(scratch / "checkpoint")
        return export_bundle(
            "harm",
            scratch / "checkpoint",
            scratch / "exported",
            name="judge",
            max_length=MAX_LENGTH,
            sample=conversations(64),
        )


def learnt_tokenizer() -> Any:
    """A word-piece tokenizer as BERT's, with a vocabulary learnt from the texts measured."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors, trainers

    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    trainer = trainers.WordPieceTrainer(
        vocab_size=VOCABULARY, special_tokens=special, show_progress=False
    )
    tokenizer.train_from_iterator((item.response for item in conversations(2000)), trainer)
    tokenizer.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    return tokenizer


def _write_null(path: Path) -> None:
    """logits = the mean of the attention mask."""
    from onnx import TensorProto, helper, save

    nodes = [
        helper.make_node("Cast", ["attention_mask"], ["mask"], to=TensorProto.FLOAT),
        helper.make_node("ReduceMean", ["mask"], ["logits"], axes=[1], keepdims=1),
    ]
    inputs = [
        helper.make_tensor_value_info(name, TensorProto.INT64, ["batch", "length"])
        for name in ("input_ids", "attention_mask")
    ]
    output = helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", 1])
    graph = helper.make_graph(nodes, "null", inputs, [output])
    save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=10), path)


def conversations(count: int) -> list[Interaction]:
    """Invented words; lengths lognormal, MEAN_LENGTH tokens on average before they are cut."""
    random = np.random.default_rng(0)
    center = np.log(MEAN_LENGTH) - SIGMA**2 / 2
    lengths = random.lognormal(center, SIGMA, count).clip(8, 2000).astype(int)
    return [_conversation(random, number, int(length)) for number, length in enumerate(lengths)]


def sized(count: int, size: int) -> list[Interaction]:
    """Conversations whose record has about so many bytes."""
    random = np.random.default_rng(size)
    frame = len(_conversation(random, 0, 2).encode())
    found: list[Interaction] = []
    for number in range(count):
        item = _conversation(random, number, max(2, (size - frame) // 5))
        over = len(item.encode()) - size
        if over > 0:
            item = item.model_copy(update={"response": item.response[: -over or None] or "ba"})
        found.append(item)
    return found


_SYLLABLES: Final = ("ba", "re", "ti", "lo", "mun", "sor", "ka", "ve", "dis", "pol", "an", "gre")


def _words() -> Sequence[str]:
    random = np.random.default_rng(1)
    return ["".join(random.choice(_SYLLABLES, random.integers(1, 4))) for _ in range(3000)]


_WORDS: Final = _words()


def _conversation(random: np.random.Generator, number: int, length: int) -> Interaction:
    # Frequent words are few, as in a language.
    text = [_WORDS[int(place)] for place in random.zipf(1.3, length) % len(_WORDS)]
    cut = max(1, length // 4)
    return Interaction(
        id=f"{number:08d}",
        occurred_at=datetime(2024, 1, 1, tzinfo=UTC),
        messages=(Message(role="user", content=" ".join(text[:cut])),),
        response=" ".join(text[cut:]),
        policy=Policy(name="bench", version="1"),
    )
