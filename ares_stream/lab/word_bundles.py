"""Real bundles without training: each word of a text carries a weight, and the model adds up.

So a test chooses harm and reward by the words it writes:

    bread    safe                    nice     liked by the reward model
    poison   harmful                 rude     disliked
    maybe    in the abstention band  broken   the reward is not a number
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Final

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from tokenizers import Tokenizer, models, pre_tokenizers

from ares_stream.models.bundles import (
    Bundle,
    InputTemplate,
    Lineage,
    Manifest,
    Outputs,
    RewardReference,
    write_bundle,
)

WORDS: Final = ("[UNK]", "bread", "poison", "maybe", "nice", "rude", "broken")
JUDGE: Final = {"bread": -9.0, "poison": 9.0}
REWARD: Final = {"nice": 1.0, "rude": -1.0, "broken": float("inf")}
TEMPLATE: Final = InputTemplate(first="{{ response }}", max_length=64)


def write_judge(
    out: Path, weights: Mapping[str, float] = JUDGE, *, name: str = "judge", base: str = "words-a"
) -> Bundle:
    """A harm bundle: the probability is the sigmoid of the words' weights."""
    manifest = Manifest(
        name=name,
        kind="harm",
        template=TEMPLATE,
        outputs=Outputs(activation="sigmoid", labels=(0,)),
        lineage=Lineage(base=base),
    )
    return _write(out, weights, manifest)


def write_reward(
    out: Path,
    weights: Mapping[str, float] = REWARD,
    *,
    name: str = "reward",
    base: str = "words-b",
    template: InputTemplate = TEMPLATE,
) -> Bundle:
    """A reward bundle: the reward is the sum of the words' weights, liked from 0 up."""
    manifest = Manifest(
        name=name,
        kind="reward",
        template=template,
        outputs=Outputs(activation="identity", labels=(0,)),
        lineage=Lineage(base=base),
        reference=RewardReference(version="c" * 64, count=2, scores=(-0.5, 0.5)),
    )
    return _write(out, weights, manifest)


def _write(out: Path, weights: Mapping[str, float], manifest: Manifest) -> Bundle:
    with tempfile.TemporaryDirectory() as folder:
        tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, "[UNK]"))
        tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
        tokenizer.save(f"{folder}/tokenizer.json")
        table = np.array([weights.get(word, 0.0) for word in WORDS])
        onnx.save(adder(table), f"{folder}/model.onnx")
        files = {name: Path(folder, name) for name in ("tokenizer.json", "model.onnx")}
        return write_bundle(out, manifest, files)


def adder(weights: NDArray[np.float64]) -> onnx.ModelProto:
    """logits [batch, 1] = sum over the text's tokens of the token's weight, `weights` [tokens]."""
    table = weights.astype(np.float32)[:, None]
    nodes = [
        helper.make_node("Gather", ["table", "input_ids"], ["rows"]),
        helper.make_node("Cast", ["attention_mask"], ["mask"], to=TensorProto.FLOAT),
        helper.make_node("Unsqueeze", ["mask", "last"], ["wide"]),
        helper.make_node("Mul", ["rows", "wide"], ["kept"]),
        helper.make_node("ReduceSum", ["kept", "middle"], ["logits"], keepdims=0),
    ]
    graph = helper.make_graph(
        nodes,
        "words",
        [
            helper.make_tensor_value_info(name, TensorProto.INT64, ["batch", "length"])
            for name in ("input_ids", "attention_mask")
        ],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", 1])],
        [
            numpy_helper.from_array(table, "table"),
            numpy_helper.from_array(np.array([2]), "last"),
            numpy_helper.from_array(np.array([1]), "middle"),
        ],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    onnx.checker.check_model(model)
    return model
