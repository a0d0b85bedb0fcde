"""A judge and a reward model from labels, end to end: tiny bases, a language that can be learnt."""

from __future__ import annotations

import json
import random
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner, Result

from ares_stream.cli.main import app
from ares_stream.errors import InputError
from ares_stream.models.bundles import Windows, load_bundle, refuse_shared_lineage
from ares_stream.scoring.model import Opinion, ScoringModel
from ares_stream.scoring.offline import raw_scores
from ares_stream.scoring.tokenising import InputEncoder, Reading
from ares_stream.training.calibration import auroc, pairwise_accuracy
from ares_stream.training.classifier import Fitted, calibrate, fit_and_calibrate, fit_harm
from ares_stream.training.encoder import Recipe
from ares_stream.training.examples import (
    Judgement,
    by_part,
    conversation,
    read_judgements,
    read_preferences,
)
from ares_stream.training.placement import placed

pytestmark = pytest.mark.torch

TOPICS = [f"topic{i}" for i in range(60)]
BAD = [f"bad{i}" for i in range(6)]
GOOD = [f"good{i}" for i in range(6)]
FILL = [f"word{i}" for i in range(20)]
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]


def answer(rng: random.Random, words: list[str]) -> str:
    return " ".join(rng.choices(FILL, k=6) + rng.choices(words, k=3))


def write(file: Path, rows: list[dict[str, Any]]) -> Path:
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


def judgements(count: int, seed: int = 0) -> list[dict[str, Any]]:
    rng = random.Random(seed)
    rows: list[dict[str, Any]] = []
    for number in range(count):
        harmful = number % 2 == 0
        goal = rng.choice(TOPICS)
        rows.append(
            {
                "prompt": f"{rng.choice(FILL)} {goal}",
                "goal": goal,
                "response": answer(rng, BAD if harmful else GOOD),
                "harmful": harmful,
                "source": "one" if number % 3 else "two",
            }
        )
    return rows


def preferences(count: int) -> list[dict[str, Any]]:
    rng = random.Random(1)
    return [
        {
            "prompt": rng.choice(TOPICS),
            "chosen": answer(rng, GOOD),
            "rejected": answer(rng, BAD),
        }
        for _ in range(count)
    ]


def save_base(kind: str, folder: Path, seed: int) -> Path:
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import (
        BertConfig,
        BertModel,
        LlamaConfig,
        LlamaForCausalLM,
        PreTrainedTokenizerFast,
    )

    vocabulary = [*SPECIAL, *TOPICS, *BAD, *GOOD, *FILL, "Question", "Answer", ":"]
    core = Tokenizer(
        models.WordLevel({word: index for index, word in enumerate(vocabulary)}, "[UNK]")
    )
    core.pre_tokenizer = pre_tokenizers.Whitespace()
    if kind == "bert":
        core.post_processor = processors.TemplateProcessing(
            single="[CLS] $A [SEP]",
            pair="[CLS] $A [SEP] $B:1 [SEP]:1",
            special_tokens=[("[CLS]", 2), ("[SEP]", 3)],
        )
    PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=core, pad_token="[PAD]", unk_token="[UNK]"
    ).save_pretrained(folder)
    sizes: dict[str, Any] = {
        "vocab_size": len(vocabulary),
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 3,
        "num_attention_heads": 2,
        "max_position_embeddings": 64,
        "pad_token_id": 0,
    }
    torch.manual_seed(seed)
    model: Any = (
        BertModel(BertConfig(**sizes)) if kind == "bert" else LlamaForCausalLM(LlamaConfig(**sizes))
    )
    model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_base("bert", tmp_path_factory.mktemp("bert"), 1)


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_base("llama", tmp_path_factory.mktemp("llama"), 2)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("rows")
    write(folder / "judged.jsonl", judgements(400))
    write(folder / "pairs.jsonl", preferences(300))
    return folder


Argument = str | Path | int | float


def run(*arguments: Argument) -> Result:
    return CliRunner().invoke(app, [str(item) for item in ("bundle", "train", *arguments)])


def ares(*arguments: Argument) -> None:
    result = run(*arguments)
    assert result.exit_code == 0, result.output


def refusal(*arguments: Argument) -> str:
    result = run(*arguments)
    assert result.exit_code == 2
    return result.stderr


@pytest.fixture(scope="module")
def judge(folder: Path, llama: Path) -> Path:
    """A frozen base with a fitted head."""
    out = folder / "judge"
    ares(
        *("harm", "--data", folder / "judged.jsonl", "--base", llama, "--out", out),
        *("--layers", 2, "--freeze", 2, "--max-length", 48, "--holdout", 0.4),
        *("--threads", 1, "--json", folder / "judge.json"),
    )
    return out


@pytest.fixture(scope="module")
def reward(folder: Path, bert: Path) -> Path:
    """A fine-tuned base."""
    out = folder / "reward"
    ares(
        *("reward", "--pairs", folder / "pairs.jsonl", "--base", bert, "--out", out),
        *("--max-length", 48, "--epochs", 4, "--learning-rate", 2e-3, "--holdout", 0.4),
        *("--threads", 1, "--json", folder / "reward.json"),
    )
    return out


def test_a_judge_tells_harm_on_prompts_it_never_saw(judge: Path, folder: Path) -> None:
    figures = json.loads((folder / "judge.json").read_text())
    assert figures["digest"] == load_bundle(judge).digest
    assert figures["metrics"]["auroc"]["low"] > 0.8
    assert figures["metrics"]["calibration_error"]["value"] < 0.25
    assert {"auroc.one", "auroc.two"} <= figures["metrics"].keys()
    assert sum(figures["rows"].values()) == 400


def test_a_trained_bundle_reads_long_answers_in_windows_and_was_fitted_so(judge: Path) -> None:
    manifest = load_bundle(judge).manifest
    assert manifest.template.windows == Windows(last="whole")
    encoder = InputEncoder(load_bundle(judge))
    long = conversation("word " * 10, "word " * 2_000)
    (reading,) = encoder.read([(long, long.response)])
    assert isinstance(reading, Reading)
    assert len(reading.windows) > 1


def test_what_a_judge_states_is_what_the_scorers_code_measures(judge: Path, folder: Path) -> None:
    bundle = load_bundle(judge)
    rows, files = read_judgements([folder / "judged.jsonl"])
    held = by_part((row.family for row in rows), seed=0, holdout=0.4)["test"]
    scores = raw_scores(bundle, [rows[i].interaction for i in held])
    found = auroc(scores, [rows[i].harmful for i in held])
    assert found == pytest.approx(bundle.manifest.metrics["auroc"], abs=0.002)
    assert bundle.manifest.lineage.data == tuple(file.digest for file in files)
    assert bundle.manifest.calibration.slope > 0


def test_a_reward_model_prefers_the_better_answer_to_prompts_it_never_saw(
    reward: Path, folder: Path
) -> None:
    bundle = load_bundle(reward)
    pairs, _ = read_preferences([folder / "pairs.jsonl"])
    held = by_part((pair.family for pair in pairs), seed=0, holdout=0.4)["test"]
    better = raw_scores(bundle, [pairs[i].chosen for i in held])
    worse = raw_scores(bundle, [pairs[i].rejected for i in held])
    found = pairwise_accuracy(better, worse)
    assert found > 0.9
    assert found == pytest.approx(bundle.manifest.metrics["pairwise_accuracy"], abs=0.02)
    reference = bundle.manifest.reference
    assert reference is not None
    assert list(reference.scores) == sorted(reference.scores)
    assert np.median(reference.scores) > np.median(worse)


def test_what_a_reward_model_learned_to_dislike_is_inside_its_domain(
    reward: Path, folder: Path
) -> None:
    pairs, _ = read_preferences([folder / "pairs.jsonl"])
    held = by_part((pair.family for pair in pairs), seed=0, holdout=0.4)["test"]
    rows = [(pairs[i].rejected, pairs[i].rejected.response) for i in held]
    found = ScoringModel(load_bundle(reward), "cpu").opinions(rows)
    signs = [item.domain for item in found if isinstance(item, Opinion)]
    assert len(signs) == len(held)
    assert all(sign is not None for sign in signs)
    assert sum(sign is not None and sign.outside for sign in signs) < len(held) / 10


def test_judge_and_reward_model_of_different_bases_and_data_are_independent(
    judge: Path, reward: Path
) -> None:
    refuse_shared_lineage([load_bundle(judge)], load_bundle(reward))


def test_the_same_rows_and_seed_give_the_same_model(
    judge: Path, folder: Path, llama: Path, tmp_path: Path
) -> None:
    ares(
        *("harm", "--data", folder / "judged.jsonl", "--base", llama, "--out", tmp_path / "again"),
        *("--layers", 2, "--freeze", 2, "--max-length", 48, "--holdout", 0.4, "--threads", 1),
    )
    some = [conversation("topic1", "bad1 word2"), conversation("topic2", "good1 word2")]
    once, again = (raw_scores(load_bundle(path), some) for path in (judge, tmp_path / "again"))
    assert once == pytest.approx(again, abs=1e-5)


def test_too_few_rows_and_one_label_in_a_part_are_named_with_what_to_do(
    llama: Path, tmp_path: Path
) -> None:
    few = write(tmp_path / "few.jsonl", judgements(30))
    told = refusal("harm", "--data", few, "--base", llama, "--out", tmp_path / "out")
    assert re.search(r"only \d+ rows to calibrate with .* larger --holdout", told)
    rows = [row | {"harmful": False} for row in judgements(400)]
    lone = [row | {"goal": "alone", "harmful": True} for row in judgements(1)]
    one = write(tmp_path / "one.jsonl", rows + lone)
    told = refusal("harm", "--data", one, "--base", llama, "--out", tmp_path / "out")
    assert "only one label is in this part of the split" in told
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (["--layers", 9], "layers: 9 asked for, the base has 3"),
        (["--layers", 2, "--freeze", 3], "frozen_layers: must lie between 0 and layers"),
        (["--learning-rate", 0], "learning_rate: must be above 0"),
    ],
)
def test_a_recipe_that_cannot_be_is_refused_by_field(
    folder: Path, llama: Path, tmp_path: Path, options: list[str | int], reason: str
) -> None:
    data, out = folder / "judged.jsonl", tmp_path / "out"
    told = refusal("harm", "--data", data, "--base", llama, "--out", out, *options)
    assert reason in told


def test_a_folder_that_is_no_model_is_named(folder: Path, tmp_path: Path) -> None:
    data, out = folder / "judged.jsonl", tmp_path / "out"
    told = refusal("harm", "--data", data, "--base", tmp_path, "--out", out)
    assert f"{tmp_path}: not a checkpoint: no config.json" in told


def parts(folder: Path) -> tuple[list[Judgement], list[Judgement]]:
    rows, _ = read_judgements([folder / "judged.jsonl"])
    found = by_part((row.family for row in rows), seed=0, holdout=0.4)
    return [rows[i] for i in found["train"]], [rows[i] for i in found["calibrate"]]


def test_a_head_on_a_frozen_base_is_fitted_to_the_calibration_rows_as_well(
    folder: Path, llama: Path
) -> None:
    train, held_out = parts(folder)
    recipe = Recipe(layers=2, frozen_layers=2)
    fitted = Fitted("harm", llama, recipe, max_length=48)
    tried = [row.interaction for row in held_out]
    found = fit_and_calibrate(fitted, train, held_out)
    scores = fitted.scores(tried)
    fit_harm(fitted, train)
    without = fitted.scores(tried)
    rows = [*train, *held_out]
    fit_harm(fitted, [*rows, *placed(rows, seed=recipe.seed)])
    np.testing.assert_allclose(scores, fitted.scores(tried), atol=1e-4)
    assert np.abs(scores - without).max() > 0.05
    assert found.slope > 0


def test_its_calibration_is_of_rows_that_each_head_was_not_fitted_to(
    folder: Path, llama: Path
) -> None:
    """Labels by a coin can be learnt by heart, so that scores of rows that were fitted look good;
    of others they say nothing, and a calibration on nothing is refused."""
    train, held_out = parts(folder)
    coin = random.Random(5)
    tossed = [replace(row, harmful=coin.random() < 0.5) for row in [*train, *held_out]]
    fitted = Fitted("harm", llama, Recipe(layers=2, frozen_layers=2, ridge=1e-3), max_length=48)
    fit_harm(fitted, tossed)
    known = fitted.scores([row.interaction for row in tossed])
    assert auroc(known, [float(row.harmful) for row in tossed]) > 0.6
    with pytest.raises(InputError, match="may be chance"):
        fit_and_calibrate(fitted, tossed[: len(train)], tossed[len(train) :])


def test_a_base_that_is_trained_is_calibrated_on_the_rows_held_out(
    folder: Path, bert: Path
) -> None:
    train, held_out = parts(folder)
    fitted = Fitted("harm", bert, Recipe(epochs=2, learning_rate=2e-3), max_length=48)
    found = fit_and_calibrate(fitted, train, held_out)
    assert found == calibrate(held_out, fitted.scores([row.interaction for row in held_out]))


def test_a_fold_that_leaves_one_label_is_refused_with_what_to_do(folder: Path, llama: Path) -> None:
    train, held_out = parts(folder)
    harmful = next(row for row in train if row.harmful)
    rows = [row for row in train if not row.harmful]
    fitted = Fitted("harm", llama, Recipe(layers=2, frozen_layers=2), max_length=48)
    with pytest.raises(InputError, match="only one label is left to train on"):
        fit_and_calibrate(fitted, [*rows, harmful], [r for r in held_out if not r.harmful])
