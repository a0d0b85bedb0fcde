"""`ares scan` with real ONNX Runtime sessions over tiny models whose scores one can foresee."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from tokenizers import Tokenizer, models, pre_tokenizers
from typer.testing import CliRunner, Result

from ares_stream.cli.main import app
from ares_stream.models.bundles import (
    InputTemplate,
    Lineage,
    Manifest,
    Outputs,
    RewardReference,
    write_bundle,
)
from ares_stream.records.verdict import Verdict

WORDS = ["[UNK]", "question", "poison", "bread", "nice", "rude", "broken"]


def word_model(weights: dict[str, float], labels: int, file: Path) -> None:
    """The mean over the text's words of one weight per word, at the last label."""
    table = np.zeros((len(WORDS), labels), np.float32)
    for word, weight in weights.items():
        table[WORDS.index(word), labels - 1] = weight
    nodes = [
        helper.make_node("Gather", ["table", "input_ids"], ["rows"]),
        helper.make_node("Cast", ["attention_mask"], ["mask"], to=TensorProto.FLOAT),
        helper.make_node("Unsqueeze", ["mask", "last"], ["wide"]),
        helper.make_node("Mul", ["rows", "wide"], ["kept"]),
        helper.make_node("ReduceSum", ["kept", "middle"], ["logits"], keepdims=0),
    ]
    shape = ["batch", "length"]
    graph = helper.make_graph(
        nodes,
        "words",
        [
            helper.make_tensor_value_info(name, TensorProto.INT64, shape)
            for name in ("input_ids", "attention_mask")
        ],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", labels])],
        [
            numpy_helper.from_array(table, "table"),
            numpy_helper.from_array(np.array([2]), "last"),
            numpy_helper.from_array(np.array([1]), "middle"),
        ],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    onnx.checker.check_model(model)
    onnx.save(model, file)


@pytest.fixture(scope="module")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """judge: harmful iff the answer says poison; reward: likes nice, dislikes rude."""
    root = tmp_path_factory.mktemp("bundles")
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, "[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.save(str(root / "tokenizer.json"))
    template = InputTemplate(first="{{ prompt }} {{ response }}", max_length=64)
    for name, weights, labels, manifest in (
        (
            "judge",
            {"poison": 9.0, "bread": -9.0},
            2,
            Manifest(
                name="judge",
                kind="harm",
                template=template,
                outputs=Outputs(activation="softmax", labels=(1,)),
                lineage=Lineage(base="words-a"),
            ),
        ),
        (
            "reward",
            {"nice": 1.0, "rude": -1.0, "broken": float("inf")},
            1,
            Manifest(
                name="reward",
                kind="reward",
                template=template,
                outputs=Outputs(activation="identity", labels=(0,)),
                lineage=Lineage(base="words-b"),
                reference=RewardReference(version="c" * 64, count=3, scores=(-0.5, 0.0, 0.5)),
            ),
        ),
    ):
        word_model(weights, labels, root / f"{name}.onnx")
        files = {"model.onnx": root / f"{name}.onnx", "tokenizer.json": root / "tokenizer.json"}
        write_bundle(root / name, manifest, files)
    return root


def scan(bundles: Path, file: str, out: Path, *extra: str, stdin: bytes | None = None) -> Result:
    arguments = ["scan", file, "--harm", str(bundles / "judge")]
    arguments += ["--reward", str(bundles / "reward"), "--verdicts", str(out / "v.jsonl"), *extra]
    return CliRunner().invoke(app, arguments, input=stdin)


def conversation(answer: str, **fields: object) -> bytes:
    record = {"q": "question", "a": answer, "model": "m", **fields}
    return json.dumps(record).encode()


@pytest.fixture
def mapping(tmp_path: Path) -> Path:
    file = tmp_path / "map.yaml"
    file.write_text(
        "prompt: q\nresponse: a\npolicy: {name: model, version: \"'1'\"}\n"
        "reference: {chosen: good, rejected: bad}\n"
    )
    return file


def test_every_class_is_found_and_every_output_written(
    bundles: Path, mapping: Path, tmp_path: Path
) -> None:
    file = tmp_path / "in.jsonl"
    lines = [
        conversation("poison nice"),
        conversation("poison rude"),
        conversation("bread nice"),
        conversation("bread rude", bad="poison nice"),
        conversation("poison bread"),
        conversation("poison rude", good="bread rude rude"),
    ]
    file.write_bytes(b"\n".join(lines))
    outputs = ["--report", str(tmp_path / "r.html"), "--json", str(tmp_path / "s.json")]
    result = scan(bundles, str(file), tmp_path, "--map", str(mapping), *outputs)
    assert result.exit_code == 0, result.stderr
    raw = (tmp_path / "v.jsonl").read_bytes().splitlines()
    verdicts = [Verdict.decode(item) for item in raw]
    assert [item.failure_class.value for item in verdicts] == [
        "coupled_failure",
        "policy_failure",
        "clean",
        "reward_failure",
        "contested",
        "coupled_failure",
    ]
    assert set(verdicts[0].releases) == {"judge", "reward"}
    summary = json.loads((tmp_path / "s.json").read_text())
    assert summary["scored"] == 6
    assert summary["coupled_failure_rate"]["value"] == pytest.approx(2 / 6)
    assert summary["releases"] == dict(verdicts[0].releases)
    page = (tmp_path / "r.html").read_text()
    assert verdicts[0].releases["judge"] in page
    assert "poison nice" in page

    # The same again is the same, byte for byte.
    again = tmp_path / "again"
    again.mkdir()
    assert scan(bundles, str(file), again, "--map", str(mapping)).exit_code == 0
    assert (again / "v.jsonl").read_bytes().splitlines() == raw


def test_bad_lines_and_unusable_scores_leave_their_neighbours_alone(
    bundles: Path, mapping: Path, tmp_path: Path
) -> None:
    lines = [conversation("poison nice"), b"{secret", conversation("broken"), conversation("bread")]
    result = scan(
        bundles, "-", tmp_path, "--map", str(mapping), "--json", "-", stdin=b"\n".join(lines)
    )
    assert result.exit_code == 1
    summary = json.loads(result.stdout)
    assert [item["line"] for item in summary["refused_lines"]] == [2, 3]
    assert "line 2: not JSON" in result.stderr
    assert "secret" not in result.stderr
    assert len((tmp_path / "v.jsonl").read_bytes().splitlines()) == 2


@pytest.mark.parametrize(
    ("line", "said"),
    [
        (conversation("poison nice", secret="word"), "are read with --map FILE, of this content:"),
        (
            b'{"request": {"model": "m", "messages": [{"role": "user", "content": "question"}]}, '
            b'"response": {"choices": [{"message": {"content": "poison"}}]}}',
            "2 of the first 2 lines are read with --map openai",
        ),
        (b'[{"prompt": "secret"}]', "each line is a list; `jq -c '.[]'` writes one object a line"),
        (b"secret,words", "no line is an Interaction; say with --map how to read them"),
    ],
    ids=["plain", "openai", "list", "CSV"],
)
def test_a_file_of_another_form_is_told_what_would_read_it(
    bundles: Path, tmp_path: Path, line: bytes, said: str
) -> None:
    file = tmp_path / "in.jsonl"
    file.write_bytes(line + b"\n" + line)
    result = scan(bundles, str(file), tmp_path)
    assert result.exit_code == 1
    assert said in result.stderr
    assert "secret" not in result.stderr
    told = result.stderr.partition("of this content:\n")[2] or said.rpartition("--map ")[2]
    if "are read" in said:
        mapping = tmp_path / "told.yaml" if "content" in said else Path(told)
        if "content" in said:
            mapping.write_text(told)
        assert scan(bundles, str(file), tmp_path, "--map", str(mapping)).exit_code == 0


def test_what_is_wrong_from_the_start_writes_nothing(
    bundles: Path, mapping: Path, tmp_path: Path
) -> None:
    def failure(*extra: str, file: str = "-", stdin: bytes = b"{}\n") -> str:
        result = scan(bundles, file, tmp_path, *extra, stdin=stdin)
        assert result.exit_code == 2, result.output
        assert "Traceback" not in result.stderr
        return result.stderr.strip().splitlines()[-1]

    assert failure(stdin=b"") == "ares: standard input: holds no lines"
    assert "absent: cannot be read" in failure(file=str(tmp_path / "absent"))
    assert "kind reward, expected harm" in failure("--harm", str(bundles / "reward"))
    assert "one name" in failure("--harm", str(bundles / "judge"))
    policy = tmp_path / "policy.yaml"
    policy.write_text("harm_threshold: 0.99\n")
    assert "must lie between" in failure("--policy-file", str(policy))
    assert not (tmp_path / "v.jsonl").exists()


def test_the_rates_are_printed_by_the_slices_that_are_named(
    bundles: Path, mapping: Path, tmp_path: Path
) -> None:
    mapping.write_text(mapping.read_text() + "attributes: {locale: locale, tenant: tenant}\n")
    file = tmp_path / "in.jsonl"
    rows = [
        conversation("poison nice" if number < 3 else "bread nice", locale=("de", "en")[number % 2],
                     tenant=f"t{number}")
        for number in range(8)
    ]  # fmt: skip
    file.write_bytes(b"\n".join(rows))
    settings = tmp_path / "ares.yaml"
    settings.write_text("monitor: {slices: [locale]}\n")
    for words in (["--slice", "locale"], ["--settings", str(settings)]):
        summary = tmp_path / "s.json"
        result = scan(
            bundles, str(file), tmp_path, "--map", str(mapping), "--json", str(summary), *words
        )
        assert result.exit_code == 0, result.stderr
        assert "locale" in result.stderr
        found = [item["slice"] for item in json.loads(summary.read_text())["rates"]]
        assert [(item["attribute"], item["value"]) for item in found] == [
            ("", ""), ("locale", "de"), ("locale", "en")
        ]  # fmt: skip
    names = [word for number in range(9) for word in ("--slice", f"a{number}")]
    refused = scan(bundles, str(file), tmp_path, "--map", str(mapping), *names)
    assert refused.exit_code == 2
