"""An ONNX classifier of another tool becomes a bundle when it gives what it gave there."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from typer.testing import CliRunner

from ares_stream.cli.main import app
from ares_stream.models.bundles import load_bundle
from ares_stream.scoring.model import Opinion, ScoringModel
from ares_stream.scoring.offline import raw_scores
from ares_stream.training.examples import conversation
from tests.support.word_models import word_model, word_tokenizer

SAID = ["good", "bad", "worse", "good good", "bad worse bad", "dull"]
WEIGHTS = {"good": -1.0, "bad": 1.0, "worse": 3.0}


def logit(answer: str) -> float:
    return sum(WEIGHTS.get(word, 0.0) for word in answer.split())


def row(answer: str, **outputs: Any) -> dict[str, Any]:
    return {"prompt": "dull", "response": answer, **outputs}


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """As Optimum writes it: the model, its tokenizer, config.json with the labels' names."""
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "model.onnx").write_bytes(word_model(WEIGHTS, 2))
    (folder / "tokenizer.json").write_text(word_tokenizer())
    names = {"id2label": {"0": "fine", "1": "toxic"}}
    (folder / "config.json").write_text(json.dumps(names))
    return folder


@pytest.fixture
def write(tmp_path: Path) -> Callable[[list[dict[str, Any]]], Path]:
    def write(rows: list[dict[str, Any]]) -> Path:
        file = tmp_path / "expected.jsonl"
        file.write_text("".join(json.dumps(item) + "\n" for item in rows))
        return file

    return write


def run(*arguments: str | Path | float, code: int = 0) -> str:
    command = ["bundle", "import", "onnx", *map(str, arguments)]
    result = CliRunner().invoke(app, command)
    assert result.exit_code == code, result.output
    assert "Traceback" not in result.output
    return " ".join((result.stdout if code == 0 else result.stderr).split())


def test_a_model_that_gives_what_it_gave_elsewhere_becomes_a_bundle(
    model: Path, tmp_path: Path, write: Callable[..., Path]
) -> None:
    expected = write([row(answer, logits=[0.0, logit(answer)]) for answer in SAID])
    said = run(model, "--out", tmp_path / "out", "--expected", expected, "--name", "theirs")
    assert "over 6 rows" in said
    bundle = load_bundle(tmp_path / "out", "harm")
    assert bundle.manifest.outputs.model_dump() == {"activation": "softmax", "labels": (1,)}
    assert bundle.manifest.name == "theirs"
    assert bundle.manifest.lineage.base.startswith("onnx:")
    assert bundle.manifest.parity is not None
    assert bundle.manifest.parity.cases == 6
    found = raw_scores(bundle, [conversation("dull", answer) for answer in SAID])
    assert found == pytest.approx([1 / (1 + np.exp(-logit(answer))) for answer in SAID])


def test_one_number_a_row_is_enough(
    model: Path, tmp_path: Path, write: Callable[..., Path]
) -> None:
    expected = write([row(said, score=1 / (1 + np.exp(-logit(said)))) for said in SAID])
    run(model / "model.onnx", "--out", tmp_path / "out", "--expected", expected, "--label", "toxic")
    reward = write([row(said, score=logit(said)) for said in SAID])
    benign = tmp_path / "benign.jsonl"
    benign.write_text("".join(json.dumps(row(said)) + "\n" for said in SAID * 4))
    options = ("--kind", "reward", "--label", 1, "--expected", reward, "--reference", benign)
    run(model, "--out", tmp_path / "rm", *options, "--base", "org/base")
    manifest = load_bundle(tmp_path / "rm", "reward").manifest
    assert manifest.outputs.activation == "identity"
    assert manifest.lineage.base == "org/base"
    assert manifest.reference is not None
    assert manifest.reference.count == 24


def test_windows_and_a_domain_are_written_where_they_are_asked_for(
    model: Path, tmp_path: Path, write: Callable[..., Path]
) -> None:
    expected = write([row(answer, logits=[0.0, logit(answer)]) for answer in SAID])
    like = tmp_path / "like.jsonl"
    like.write_text("".join(json.dumps(row("good bad " * n)) + "\n" for n in range(1, 91)))
    options = ("--expected", expected, "--windows", 5, "--domain", like)
    refused = run(model, "--out", tmp_path / "none", *options, code=2)
    assert "a domain needs an output pooled" in refused
    assert not (tmp_path / "none").exists()
    (model / "model.onnx").write_bytes(word_model(WEIGHTS, 2, pooled=("good", "bad", "dull")))
    run(model, "--out", tmp_path / "out", *options)
    bundle = load_bundle(tmp_path / "out", "harm")
    assert bundle.manifest.template.windows is not None
    assert bundle.manifest.template.windows.most == 5
    assert bundle.manifest.domain is not None
    assert (bundle.manifest.domain.rows, bundle.manifest.domain.held_out) == (60, 30)
    judge = ScoringModel(bundle, "cpu")
    asked = [conversation("dull", text) for text in ("good bad good", "bad " * 40)]
    near, far = judge.opinions([(item, item.response) for item in asked])
    assert isinstance(near, Opinion)
    assert isinstance(far, Opinion)
    assert near.domain is not None
    assert far.domain is not None
    assert (near.domain.outside, far.domain.outside) == (False, True)
    shown = CliRunner().invoke(app, ["bundle", "show", str(tmp_path / "out")]).stdout
    assert "at most 5 windows" in " ".join(shown.split())
    assert "of 60 conversations" in " ".join(shown.split())


def test_a_dry_run_shows_what_the_model_gives_and_writes_nothing(
    model: Path, tmp_path: Path, write: Callable[..., Path]
) -> None:
    before = sorted(tmp_path.rglob("*"))
    expected = write([row(answer, score=0.5) for answer in SAID])
    said = run(model, "--dry-run", "--expected", expected)
    assert "labels fine, toxic; read: toxic by softmax" in said
    assert "a pair of prompt and answer" in said
    assert "[0.0000, 3.0000] 0.9526" in said
    assert "nothing was written" in said
    run(model, "--dry-run")
    assert sorted(tmp_path.rglob("*")) == sorted([*before, expected])


def test_outputs_that_are_probabilities_are_read_as_they_are(
    model: Path, tmp_path: Path, write: Callable[..., Path]
) -> None:
    proto = onnx.load(model / "model.onnx")
    proto.graph.node[-1].output[0] = "raw"
    proto.graph.node.append(helper.make_node("Softmax", ["raw"], ["logits"], axis=1))
    onnx.save(proto, model / "model.onnx")
    wanted = [1 / (1 + np.exp(-logit(said))) for said in SAID]
    expected = write([row(said, score=value) for said, value in zip(SAID, wanted, strict=True)])
    assert "differs from expected row" in run(
        *(model, "--out", tmp_path / "out", "--expected", expected), code=2
    )
    options = ("--activation", "probability", "--expected", expected)
    run(model, "--out", tmp_path / "out", *options)
    bundle = load_bundle(tmp_path / "out")
    assert raw_scores(bundle, [conversation("dull", said) for said in SAID]) == pytest.approx(
        wanted, abs=1e-6
    )


def test_a_template_of_ones_own_makes_the_text(
    model: Path, tmp_path: Path, write: Callable[..., Path]
) -> None:
    (tmp_path / "text.jinja").write_text("{{ response }} {{ response }}")
    expected = write([row(said, logits=[0.0, 2 * logit(said)]) for said in SAID])
    options = ("--template", tmp_path / "text.jinja", "--expected", expected)
    run(model, "--out", tmp_path / "out", *options)
    assert load_bundle(tmp_path / "out").manifest.template.second is None


def test_a_chat_template_beside_the_model_is_taken(
    model: Path, tmp_path: Path, write: Callable[..., Path]
) -> None:
    settings = {
        "bos_token": {"content": "[CLS]"},
        "chat_template": "{{ bos_token }} {{ messages[-1].content }}",
    }
    (model / "tokenizer_config.json").write_text(json.dumps(settings))
    expected = write([row(said, logits=[0.0, logit(said)]) for said in SAID])
    run(model, "--out", tmp_path / "out", "--expected", expected)
    tokenizer = json.loads((tmp_path / "out" / "tokenizer.json").read_text())
    assert tokenizer["post_processor"] is None


def test_inputs_of_32_bits_are_fed(model: Path, tmp_path: Path, write: Callable[..., Path]) -> None:
    proto = onnx.load(model / "model.onnx")
    for item in proto.graph.input:
        item.type.tensor_type.elem_type = TensorProto.INT32
    onnx.save(proto, model / "model.onnx")
    expected = write([row(said, logits=[0.0, logit(said)]) for said in SAID])
    run(model, "--out", tmp_path / "out", "--expected", expected)


def end_in_probabilities(model: Path, operator: str) -> None:
    proto = onnx.load(model / "model.onnx")
    (last,) = [node for node in proto.graph.node if "logits" in node.output]
    last.output[0] = "raw"
    proto.graph.node.append(helper.make_node(operator, ["raw"], ["logits"]))
    onnx.save(proto, model / "model.onnx")


def probabilities(said: str, operator: str) -> list[float]:
    raw = np.array([0.0, logit(said)])
    found = np.exp(raw) / np.exp(raw).sum() if operator == "Softmax" else 1 / (1 + np.exp(-raw))
    return [float(value) for value in found]


@pytest.mark.parametrize("operator", ["Softmax", "Sigmoid"])
def test_a_model_that_ends_in_probabilities_is_not_read_as_logits_without_a_word(
    operator: str, model: Path, tmp_path: Path, write: Callable[..., Path]
) -> None:
    end_in_probabilities(model, operator)
    expected = write([row(said, logits=probabilities(said, operator)) for said in SAID])
    options: list[str | Path] = ["--out", tmp_path / "out", "--expected", expected]
    said = run(model, *options, code=2)
    assert "its outputs look like probabilities already; say --activation probability" in said
    assert not (tmp_path / "out").exists()
    assert "note its outputs look like probabilities" in run(
        model, "--dry-run", "--expected", expected
    )
    run(model, *options, "--activation", "probability")
    judge = ScoringModel(load_bundle(tmp_path / "out"), "cpu")
    assert raw_scores(judge.bundle, [conversation("dull", "bad")]) == pytest.approx(
        [probabilities("bad", operator)[1]], abs=1e-6
    )


@pytest.mark.parametrize(
    ("names", "read"),
    [
        (["unsafe", "safe"], None), (["TOXIC", "non-toxic"], None), (["hate", "nothate"], None),
        (["jailbreak", "benign"], None), (["flagged", "Not_Flagged"], None), (["bad", "OK"], None),
        (["safe", "unsafe"], "unsafe"), (["neutral", "toxic"], "toxic"),
        (["LABEL_0", "LABEL_1"], "LABEL_1"), (["ok", "inappropriate"], "inappropriate"),
    ],
)  # fmt: skip
def test_a_label_that_is_called_harmless_is_not_taken_for_harm(
    names: list[str], read: str | None, model: Path
) -> None:
    (model / "config.json").write_text(json.dumps({"id2label": dict(enumerate(names))}))
    if read is None:
        said = run(model, "--dry-run", code=2)
        assert f"of its labels {', '.join(names)} the second" in said
        read = names[0]
        assert f"read: {read} by" in run(model, "--dry-run", "--label", read)
    else:
        assert f"read: {read} by" in run(model, "--dry-run")


def apart(model: Path, location: str) -> None:
    """Keep the model's table in a file of its own."""
    proto = onnx.load(model / "model.onnx")
    (table,) = [item for item in proto.graph.initializer if item.name == "table"]
    (model / location).parent.mkdir(exist_ok=True)
    (model / location).write_bytes(table.raw_data)
    onnx.external_data_helper.set_external_data(table, location)
    table.ClearField("raw_data")
    (model / "model.onnx").write_bytes(proto.SerializeToString())


@pytest.mark.parametrize(
    "location", ["model.onnx.data", "weights.bin", "onnx::MatMul_123", "w" * 200]
)
def test_weights_beside_the_model_come_along_whatever_their_name(
    location: str, model: Path, tmp_path: Path, write: Callable[..., Path]
) -> None:
    apart(model, location)
    expected = write([row(said, logits=[0.0, logit(said)]) for said in SAID])
    run(model, "--out", tmp_path / "out", "--expected", expected)
    found = load_bundle(tmp_path / "out")
    assert location in found.manifest.files
    assert ScoringModel(found, "cpu").opinions([(conversation("dull", "bad"), "bad")])


@pytest.mark.parametrize(
    ("location", "reason"),
    [
        ("folder/weights.bin", "keeps weights in 'folder/weights.bin'; save it with its weights"),
        ("tokenizer.json", "keeps weights in 'tokenizer.json'"),
        ("gone.bin", "its weights gone.bin are not beside it; fetch them"),
        ("../outside.bin", "keeps weights in '../outside.bin'"),
    ],
)
def test_weights_that_cannot_come_along_are_named(location: str, reason: str, model: Path) -> None:
    tokenizer = (model / "tokenizer.json").read_bytes()
    apart(model, location)
    (model / "tokenizer.json").write_bytes(tokenizer)
    (model / "gone.bin").unlink(missing_ok=True)
    assert reason in run(model, "--dry-run", code=2)


def test_the_label_that_some_models_give_beside_their_numbers_is_not_read(
    model: Path, tmp_path: Path, write: Callable[..., Path]
) -> None:
    proto = onnx.load(model / "model.onnx")
    proto.graph.node.append(helper.make_node("ArgMax", ["logits"], ["label"], axis=1, keepdims=0))
    proto.graph.node.append(helper.make_node("Identity", ["logits"], ["scores"]))
    del proto.graph.output[:]
    proto.graph.output.extend(
        [
            helper.make_tensor_value_info("label", TensorProto.INT64, ["batch"]),
            helper.make_tensor_value_info("scores", TensorProto.FLOAT, ["batch", 2]),
        ]
    )
    onnx.save(proto, model / "model.onnx")
    expected = write([row(said, logits=[0.0, logit(said)]) for said in SAID])
    run(model, "--out", tmp_path / "out", "--expected", expected)


def fixed_shape(model: Path) -> None:
    proto = onnx.load(model / "model.onnx")
    for item in proto.graph.input:
        for place, size in enumerate((1, 8)):
            item.type.tensor_type.shape.dim[place].dim_value = size
    onnx.save(proto, model / "model.onnx")


def deaf_to_the_mask(model: Path) -> None:
    proto = onnx.load(model / "model.onnx")
    (product,) = [node for node in proto.graph.node if node.op_type == "Mul"]
    product.op_type = "Identity"
    del product.input[1]
    (table,) = [item for item in proto.graph.initializer if item.name == "table"]
    weights = numpy_helper.to_array(table).copy()
    weights[0] = 1.0  # Of the token that padding is made of.
    table.CopyFrom(numpy_helper.from_array(weights, "table"))
    onnx.save(proto, model / "model.onnx")


def of_a_later_version(model: Path) -> None:
    proto = onnx.load(model / "model.onnx")
    proto.ir_version = 99
    (model / "model.onnx").write_bytes(proto.SerializeToString())


FAULTS: dict[str, tuple[Callable[[Path], object], str]] = {
    "no model": (lambda model: (model / "model.onnx").unlink(), "holds no model.onnx"),
    "no tokenizer": (lambda model: (model / "tokenizer.json").unlink(), "holds no tokenizer.json"),
    "model not fetched": (
        lambda model: (model / "model.onnx").write_bytes(
            b"version https://git-lfs.github.com/spec/v1\n"
        ),
        "model.onnx: a git-lfs pointer",
    ),
    "model of noise": (
        lambda model: (model / "model.onnx").write_bytes(b"\x00\x01" * 40),
        "model/model.onnx: cannot be loaded: Protobuf parsing failed",
    ),
    "of a later version": (
        of_a_later_version,
        "model/model.onnx: cannot be loaded: Unsupported model IR version: 99",
    ),
    "configuration nested too deep": (
        lambda model: (model / "config.json").write_text('{"a":' * 40_000),
        "config.json: not JSON: recursion limit",
    ),
    "configuration of another encoding": (
        lambda model: (model / "config.json").write_bytes(b'{"a": "\xe9"}'),
        "config.json:1: not UTF-8",
    ),
    "chat template of a number": (
        lambda model: (model / "tokenizer_config.json").write_text('{"chat_template": 3}'),
        "chat_template: expected text, or objects of name and template",
    ),
    "chat templates without names": (
        lambda model: (model / "tokenizer_config.json").write_text('{"chat_template": [{}, 3]}'),
        "chat_template: expected text, or objects of name and template",
    ),
    "chat template of another encoding": (
        lambda model: (model / "chat_template.jinja").write_bytes(b"\xe9"),
        "chat_template.jinja:1: not UTF-8",
    ),
    "special token without text": (
        lambda model: (model / "tokenizer_config.json").write_text('{"bos_token": {"x": 1}}'),
        "bos_token: expected a token, or an object with content",
    ),
    "tokenizer of noise": (
        lambda model: (model / "tokenizer.json").write_text("{"),
        "tokenizer.json: not JSON: ",
    ),
    "another number of labels": (
        lambda model: (model / "config.json").write_text(
            json.dumps({"id2label": {"0": "a", "1": "b", "2": "c"}})
        ),
        "gives 2 outputs, config.json names 3 labels",
    ),
    "fixed shape": (fixed_shape, "needs dynamic axes for batch and length"),
    "mask not heeded": (deaf_to_the_mask, "does not heed attention_mask"),
}


@pytest.mark.parametrize("name", FAULTS)
def test_a_model_that_cannot_serve_is_one_line_that_says_why(
    name: str, model: Path, tmp_path: Path, write: Callable[..., Path]
) -> None:
    damage, reason = FAULTS[name]
    expected = write([row(said, logits=[0.0, logit(said)]) for said in SAID])
    damage(model)
    said = run(model, "--out", tmp_path / "out", "--expected", expected, code=2)
    assert reason in said
    assert said.startswith("ares: ")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("rows", "reason"),
    [
        ([row("bad", logits=[0.0, 1.5])], "differs from expected row 1 by 0.5 (allowed 0.001)"),
        ([row("bad", logits=[1.0])], "expected row 1: has 1 logits, the model gives 2"),
        ([row("bad")], "expected.jsonl:1: logits: give logits, or score"),
        ([row("bad", score=0.7, logits=[0, 1])], "one of the two"),
        ([row("Что это такое", score=0.5)], "of the tokens of the expected rows are unknown"),
        ([], "expected outputs"),
    ],
)
def test_outputs_that_do_not_prove_the_model_are_refused(
    model: Path,
    tmp_path: Path,
    write: Callable[..., Path],
    rows: list[dict[str, Any]],
    reason: str,
) -> None:
    said = run(model, "--out", tmp_path / "out", "--expected", write(rows), code=2)
    assert reason in said
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (["--out", "out"], "--expected: is needed"),
        (["--expected", "expected.jsonl"], "--out: is needed"),
        (["--dry-run", "--second", "x"], "--second: needs --template"),
        (["--dry-run", "--label", "rude"], "no label rude; there are fine, toxic"),
        (["--dry-run", "--kind", "reward"], "gives 2 outputs; name the one that is the reward"),
        (["--dry-run", "--template", "absent"], "absent: cannot be read"),
    ],
)
def test_options_that_do_not_fit_are_named(model: Path, options: list[str], reason: str) -> None:
    assert reason in run(model, *options, code=2)
