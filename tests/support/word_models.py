"""Bundles whose scores one can foresee: each word has a weight, a text's logit is their sum."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Any, Final

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from tokenizers import Tokenizer, models, pre_tokenizers, processors

from ares_stream.models.bundles import (
    DOMAIN,
    Bundle,
    InputTemplate,
    Kind,
    Lineage,
    Manifest,
    Outputs,
    RewardReference,
    write_bundle,
)
from ares_stream.records.interaction import Interaction, Message, Policy, Reference
from ares_stream.training.domain import DomainRows, fit_domain

NAN: Final = "nan"
CRASH: Final = "crash"
"""Its id is outside the model's table, so that ONNX Runtime fails on the whole batch."""
WORDS: Final = ["[CLS]", "[SEP]", "[UNK]", "good", "bad", "worse", "dull", NAN, CRASH]
WEIGHTS: Final[Mapping[str, float]] = {"good": -1.0, "bad": 1.0, "worse": 3.0, NAN: float("nan")}
PAIR: Final = InputTemplate(first="{{ prompt }}", second="{{ response }}", max_length=64)


@cache
def word_tokenizer() -> str:
    """tokenizer.json: one token per word."""
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, "[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", 0), ("[SEP]", 1)],
    )
    return tokenizer.to_str()


def word_model(
    weights: Mapping[str, float], labels: int = 1, *, pooled: Sequence[str] = ()
) -> bytes:
    """An ONNX model: the last label's logit is the sum of the words' weights, the others' 0. Its
    states are the counts of the words `pooled`, where there are any."""
    table = np.zeros((len(WORDS) - 1, labels), np.float32)
    for word, weight in weights.items():
        table[WORDS.index(word), labels - 1] = weight
    counted = np.array([[word == other for other in pooled] for word in WORDS[:-1]], np.float32)
    counts = [
        helper.make_node("Gather", ["counted", "input_ids"], ["each"]),
        helper.make_node("Mul", ["each", "wide"], ["shown"]),
        helper.make_node("ReduceSum", ["shown", "middle"], ["pooled"], keepdims=0),
    ]
    graph = helper.make_graph(
        [
            helper.make_node("Gather", ["table", "input_ids"], ["rows"]),
            helper.make_node("Cast", ["attention_mask"], ["mask"], to=TensorProto.FLOAT),
            helper.make_node("Unsqueeze", ["mask", "last"], ["wide"]),
            helper.make_node("Mul", ["rows", "wide"], ["kept"]),
            helper.make_node("ReduceSum", ["kept", "middle"], ["logits"], keepdims=0),
            *(counts if pooled else ()),
        ],
        "words",
        [
            helper.make_tensor_value_info(name, TensorProto.INT64, ["batch", "length"])
            for name in ("input_ids", "attention_mask")
        ],
        [
            helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", labels]),
            *(
                [helper.make_tensor_value_info("pooled", TensorProto.FLOAT, ["batch", len(pooled)])]
                if pooled
                else ()
            ),
        ],
        [
            numpy_helper.from_array(table, "table"),
            *([numpy_helper.from_array(counted, "counted")] if pooled else ()),
            numpy_helper.from_array(np.array([2]), "last"),
            numpy_helper.from_array(np.array([1]), "middle"),
        ],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    onnx.checker.check_model(model)
    raw: bytes = model.SerializeToString()
    return raw


def word_bundle(
    folder: Path,
    name: str,
    kind: Kind = "harm",
    weights: Mapping[str, float] = WEIGHTS,
    *,
    like: DomainRows | None = None,
    pooled: Sequence[str] = ("good", "bad", "dull"),
    **manifest: Any,
) -> Bundle:
    """A bundle at folder/name. A judge reads sigmoid of the logit, a reward the logit itself. With
    conversations that it is `like` it has a domain."""
    (folder / "model").write_bytes(word_model(weights, pooled=pooled if like else ()))
    (folder / "tokenizer").write_text(word_tokenizer())
    files = {"model.onnx": folder / "model", "tokenizer.json": folder / "tokenizer"}
    fields: dict[str, Any] = {
        "template": PAIR,
        "outputs": Outputs(activation="sigmoid" if kind == "harm" else "identity", labels=(0,)),
        "lineage": Lineage(base=f"base of {name}"),
        "reference": RewardReference(version="c" * 64, count=4, scores=(-2.0, -1.0, 0.0, 1.0))
        if kind == "reward"
        else None,
        **manifest,
    }
    made = Manifest(name=name.split("@")[0], kind=kind, **fields)
    if like is not None:
        draft = folder / f"draft of {name}"
        draft.mkdir()
        for part, source in files.items():
            (draft / part).write_bytes(source.read_bytes())
        domain = fit_domain(Bundle(draft, made, ""), like, draft)
        made = made.model_copy(update={"domain": domain})
        files[DOMAIN] = draft / DOMAIN
    return write_bundle(folder / name, made, files)


def as_draft(bundle: Bundle) -> Bundle:
    """A bundle whose files a test has changed: nobody has verified them."""
    return replace(bundle, stamps={})


def rewritten(bundle: Bundle, **changes: object) -> Path:
    """The bundle's directory after fields of its manifest were changed by hand."""
    manifest = bundle.path / "bundle.json"
    manifest.write_text(json.dumps({**json.loads(manifest.read_text()), **changes}))
    return bundle.path


def says(response: str, prompt: str = "dull", **fields: Any) -> Interaction:
    """An interaction in the tokenizer's words."""
    return Interaction(
        id="i",
        occurred_at=datetime(2024, 1, 1, tzinfo=UTC),
        messages=(Message(role="user", content=prompt),),
        response=response,
        policy=Policy(name="p", version="1"),
        **fields,
    )


def reference(chosen: str | None, rejected: str | None) -> Reference:
    """Known answers."""
    return Reference(chosen=chosen, rejected=rejected)
