"""Every way in which a checkpoint comes in refuses what is missing, foreign, cut or packed."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

from ares_stream.cli.main import app
from ares_stream.errors import AresError, BundleError
from ares_stream.probes.local_target import LocalTarget
from ares_stream.records.interaction import Policy
from ares_stream.repair.models import load_policy, load_reward
from ares_stream.repair.recipe import Lora
from ares_stream.training.checkpoints import load_checkpoint
from ares_stream.training.encoder import Encoder, Recipe
from tests.support.tiny_models import byte_pairs, checkpoint, network, rewrite, word_pieces

pytestmark = pytest.mark.torch

POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 438\n"
ENCODERS = ["Bert", "Roberta", "DistilBert", "DebertaV2", "Electra"]
DECODERS = ["Llama", "Gemma2", "Qwen3", "GPT2"]

Damage = Callable[[Path], object]


def exported(folder: Path, out: Path, *options: str | Path) -> str:
    """What `ares bundle export harm` says as it refuses: one line, exit code 2, nothing written."""
    command = ["bundle", "export", "harm", folder, "--out", out, *options]
    result = CliRunner().invoke(app, [str(item) for item in command])
    assert result.exit_code == 2, result.output
    assert "Traceback" not in result.output
    assert not out.exists()
    (line,) = [line for line in result.stderr.splitlines() if line.startswith("ares: ")]
    return line


@pytest.mark.parametrize("name", ENCODERS)
def test_an_encoder_without_a_classification_head_is_not_exported(
    tmp_path: Path, name: str
) -> None:
    folder = checkpoint(tmp_path / "base", name, "Model")
    said = exported(folder, tmp_path / "out")
    assert "has no weights for " in said
    assert "classifier." in said


@pytest.mark.parametrize("name", DECODERS)
def test_a_language_model_is_no_judge_and_a_judge_no_language_model(
    tmp_path: Path, name: str
) -> None:
    language = checkpoint(
        tmp_path / "language", name, "LMHeadModel" if name == "GPT2" else "ForCausalLM"
    )
    assert "score.weight" in exported(language, tmp_path / "out")
    judge = checkpoint(tmp_path / "judge", name, tie_word_embeddings=False)
    with pytest.raises(BundleError, match=r"lm_head\.weight"):
        load_checkpoint(judge, "policy")


def test_an_encoder_for_masked_words_is_no_policy_though_its_weights_fit(tmp_path: Path) -> None:
    folder = checkpoint(tmp_path / "base", "Bert", "ForMaskedLM")
    with pytest.raises(BundleError, match="is a BertForMaskedLM; a policy is a causal language"):
        load_checkpoint(folder, "policy")


def change_weights(change: Callable[[dict[str, torch.Tensor]], object]) -> Damage:
    def damage(folder: Path) -> None:
        file = folder / "model.safetensors"
        tensors = load_file(file)
        change(tensors)
        save_file(tensors, file, metadata={"format": "pt"})

    return damage


def write(name: str, content: bytes) -> Damage:
    return lambda folder: (folder / name).write_bytes(content)


def cut(folder: Path) -> None:
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])


def pickled(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")


def lost_shard(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    index = {"weight_map": {"classifier.weight": "model-00001-of-00002.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def shards(names: object) -> Damage:
    def change(folder: Path) -> None:
        (folder / "model.safetensors").unlink()
        (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": names}))

    return change


def quantised(folder: Path) -> None:
    rewrite(folder / "config.json", quantization_config={"quant_method": "bitsandbytes"})


def without_tokenizer(folder: Path) -> None:
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (folder / name).unlink()


def another_tokenizer(folder: Path) -> None:
    core = json.loads((folder / "tokenizer.json").read_text())
    words = core["model"]["vocab"]
    core["model"]["vocab"] = {word: place for word, place in words.items() if place < 100}
    (folder / "tokenizer.json").write_text(json.dumps(core))


def added_tokens(folder: Path) -> None:
    tokenizer = word_pieces()
    tokenizer.add_tokens([f"<extra-{number}>" for number in range(9)])
    tokenizer.save_pretrained(folder)


DAMAGES: dict[str, tuple[Damage, str]] = {
    "a layer missing": (
        change_weights(lambda t: t.pop("bert.encoder.layer.1.output.dense.weight")),
        "has no weights for bert.encoder.layer.1.output.dense.weight, which would be random",
    ),
    "a layer too many": (
        change_weights(
            lambda t: t.update({"bert.encoder.layer.2.output.dense.weight": torch.ones(2)})
        ),
        "does not use: bert.encoder.layer.2.output.dense.weight",
    ),
    "another shape": (
        change_weights(lambda t: t.update({"bert.pooler.dense.weight": torch.ones(4, 4)})),
        "bert.pooler.dense.weight [4, 4] instead of [16, 16]",
    ),
    "no number": (
        change_weights(lambda t: t["bert.pooler.dense.bias"].fill_(float("nan"))),
        "weights hold NaN or infinity: bert.pooler.dense.bias",
    ),
    "weights not fetched": (
        write("model.safetensors", POINTER),
        "model.safetensors: a git-lfs pointer, not the file itself",
    ),
    "tokenizer not fetched": (
        write("tokenizer.json", POINTER),
        "tokenizer.json: a git-lfs pointer",
    ),
    "configuration not fetched": (write("config.json", POINTER), "config.json: a git-lfs pointer"),
    "weights cut": (cut, "model.safetensors: has "),
    "weights empty": (write("model.safetensors", b""), "model.safetensors: is empty"),
    "weights of noise": (write("model.safetensors", b"\xff" * 99), "is no safetensors file"),
    "weights in a pickle": (pickled, "pytorch_model.bin, which would have to be unpickled"),
    "a shard missing": (lost_shard, "names model-00001-of-00002.safetensors, which is not there"),
    "shards without names": (
        shards({"a": 1, "b": [], "c": "model.safetensors"}),
        "weight_map: names what is no file of its folder",
    ),
    "shards of another folder": (
        shards({"a": "../model.safetensors"}),
        "weight_map: names what is no file of its folder",
    ),
    "no shards": (shards([]), "weight_map: names no file"),
    "weights nested too deep": (
        write("model.safetensors", (200_008).to_bytes(8, "little") + b'{"a":' * 40_002),
        "is no safetensors file",
    ),
    "quantised in a word": (
        lambda folder: rewrite(folder / "config.json", quantization_config="int4"),
        "is quantised (a quantisation method)",
    ),
    "configuration nested too deep": (
        write("config.json", b'{"a":' * 40_000),
        "config.json: not JSON: recursion limit",
    ),
    "quantised": (quantised, "is quantised (bitsandbytes)"),
    "an adapter": (write("adapter_config.json", b"{}"), "holds an adapter"),
    "configuration no JSON": (write("config.json", b"{'a': 1}"), "config.json: not JSON: "),
    "configuration a list": (write("config.json", b"[]"), "config.json: expected an object"),
    "unknown architecture": (
        lambda folder: rewrite(folder / "config.json", model_type="novel"),
        "cannot be loaded: The checkpoint you are trying to load has model type `novel`",
    ),
    "impossible size": (
        lambda folder: rewrite(folder / "config.json", hidden_size="wide"),
        "cannot be loaded: ",
    ),
    "no tokenizer": (without_tokenizer, "holds no tokenizer (tokenizer.json)"),
    "tokenizer of sentencepiece": (
        lambda folder: (folder / "tokenizer.json").rename(folder / "spiece.model"),
        "its tokenizer is only spiece.model",
    ),
    "tokenizer broken": (write("tokenizer.json", b"{}"), "its tokenizer cannot be loaded"),
    "another model's tokenizer": (another_tokenizer, "of the model's 300 tokens"),
    "tokens beyond the embedding": (added_tokens, "has tokens beyond the model's 300: <extra-"),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_a_damaged_checkpoint_is_one_line_that_names_what_is_wrong(
    tmp_path: Path, name: str
) -> None:
    damage, reason = DAMAGES[name]
    folder = checkpoint(tmp_path / "judge", "Bert")
    damage(folder)
    assert reason in exported(folder, tmp_path / "out")


WAYS: dict[str, tuple[str, Callable[[Path], object]]] = {
    "a repair's policy": (
        "ForCausalLM",
        lambda folder: load_policy(folder, Lora(), seed=0, max_length=64),
    ),
    "a repair's reward model": (
        "ForSequenceClassification",
        lambda folder: load_reward(folder, Lora(), seed=0, max_length=64),
    ),
    "a target of probes": (
        "ForCausalLM",
        lambda folder: LocalTarget.load(folder, Policy(name="p", version="1")),
    ),
    "a base to train": ("Model", lambda folder: Encoder(folder, Recipe())),
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(
    "damage", ["layer", "pointer", "cut", "tokenizer", "quantised", "adapter", "absent"]
)
def test_no_way_in_passes_by_the_checks(tmp_path: Path, way: str, damage: str) -> None:
    head, load = WAYS[way]
    options = {"num_labels": 1} if head == "ForSequenceClassification" else {}
    folder = checkpoint(tmp_path / "model", "Llama", head, **options)

    def lose(tensors: dict[str, torch.Tensor]) -> None:
        for name in [name for name in tensors if "layers.1.mlp" in name]:
            del tensors[name]

    damages: dict[str, Damage] = {
        "layer": change_weights(lose),
        "pointer": write("model.safetensors", POINTER),
        "cut": cut,
        "tokenizer": without_tokenizer,
        "quantised": quantised,
        "adapter": write("adapter_config.json", b"{}"),
        "absent": lambda folder: folder.rename(tmp_path / "elsewhere"),
    }
    load(folder)
    damages[damage](folder)
    with pytest.raises(AresError) as caught:
        load(folder)
    assert str(folder) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_base_brings_its_old_head_and_gets_a_new_one(tmp_path: Path) -> None:
    for name, head in (("Bert", "ForMaskedLM"), ("Llama", "ForCausalLM"), ("Bert", "Model")):
        found = load_checkpoint(checkpoint(tmp_path / f"{name}{head}", name, head), "base")
        assert found.model.config.num_labels == 1
    judge = checkpoint(tmp_path / "judge", "Roberta", num_labels=4)
    assert load_checkpoint(judge, "base").model.config.num_labels == 1


def test_a_tokenizer_that_knows_no_word_of_the_sample_is_refused(tmp_path: Path) -> None:
    folder = checkpoint(tmp_path / "judge", "Bert")
    rows = [{"prompt": "Что это?", "response": "Нет, этого нельзя делать."}]
    (tmp_path / "sample.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    said = exported(folder, tmp_path / "out", "--sample", tmp_path / "sample.jsonl")
    assert "of the sample's tokens are unknown to its tokenizer (at most 20%)" in said


def test_one_that_names_no_unknown_token_is_measured_all_the_same(tmp_path: Path) -> None:
    tokenizer = word_pieces()
    tokenizer.unk_token = None
    folder = checkpoint(tmp_path / "judge", "Bert", tokenizer=tokenizer)
    (tmp_path / "sample.jsonl").write_text(json.dumps({"prompt": "Что?", "response": "Нет."}))
    said = exported(folder, tmp_path / "out", "--sample", tmp_path / "sample.jsonl")
    assert "unknown to its tokenizer" in said


def test_the_language_model_of_several_kinds_of_input_keeps_its_language(tmp_path: Path) -> None:
    language: Any = network("Gemma3", "ForConditionalGeneration")
    language.save_pretrained(tmp_path / "policy")
    byte_pairs().save_pretrained(tmp_path / "policy")
    found = load_checkpoint(tmp_path / "policy", "policy")
    assert found.vocabulary == 300
