"""`ares bundle` on real files: export, calibrate, reference, show, verify, sign."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from typer.testing import CliRunner, Result

from ares_stream.cli.main import app
from ares_stream.errors import IntegrityError, SettingsError
from ares_stream.models.bundles import load_bundle
from ares_stream.models.signing import signed_by

pytestmark = pytest.mark.torch

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "make", "bread", "poison", "sure", "no", "never"]


def ares(*arguments: str | Path) -> Result:
    return CliRunner().invoke(app, [str(item) for item in arguments])


def works(*arguments: str | Path) -> str:
    result = ares(*arguments)
    assert result.exit_code == 0, result.output
    return result.stdout


def fails(*arguments: str | Path) -> str:
    result = ares(*arguments)
    assert result.exit_code == 2, result.output
    assert "Traceback" not in result.output
    return result.stderr.replace("\n", "")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A judge and a reward model as checkpoints, labelled and benign conversations, keys."""
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import (
        BertConfig,
        BertForSequenceClassification,
        PreTrainedTokenizerFast,
    )

    root = tmp_path_factory.mktemp("bundle-command")
    inner = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, "[UNK]"))
    inner.pre_tokenizer = pre_tokenizers.Whitespace()
    inner.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", 2), ("[SEP]", 3)],
    )
    tokenizer = PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=inner, pad_token="[PAD]", unk_token="[UNK]"
    )
    for name, labels in (("judge", 2), ("reward", 1)):
        torch.manual_seed(labels)
        sizes: dict[str, Any] = {
            "vocab_size": len(WORDS),
            "hidden_size": 16,
            "intermediate_size": 16,
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
            "max_position_embeddings": 32,
            "num_labels": labels,
            "initializer_range": 0.5,
        }
        BertForSequenceClassification(BertConfig(**sizes)).save_pretrained(root / name)
        tokenizer.save_pretrained(root / name)
    rows = 12 * [
        {"prompt": f"make {thing}", "response": answer, "harmful": answer == "sure"}
        for thing in ("bread", "poison")
        for answer in ("sure", "no", "never")
    ]
    (root / "labelled.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    for name in ("mine", "other"):
        key = ec.generate_private_key(ec.SECP256R1())
        (root / f"{name}.pem").write_bytes(
            key.private_bytes(
                serialization.Encoding.PEM,
                serialization.PrivateFormat.PKCS8,
                serialization.NoEncryption(),
            )
        )
        (root / f"{name}.pub").write_bytes(
            key.public_key().public_bytes(
                serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
            )
        )
    return root


@pytest.fixture(scope="module")
def judge(folder: Path) -> Path:
    out = folder / "bundles" / "judge"
    works(
        *("bundle", "export", "harm", folder / "judge", "--out", out, "--max-length", "32"),
        *("--sample", folder / "labelled.jsonl"),
    )
    return out


@pytest.fixture(scope="module")
def reward(folder: Path) -> Path:
    out = folder / "bundles" / "reward"
    works(
        *("bundle", "export", "reward", folder / "reward", "--out", out, "--max-length", "32"),
        *("--reference", folder / "labelled.jsonl", "--name", "rm", "--base", "org/base"),
        *("--data", folder / "labelled.jsonl", "--windows", "8"),
    )
    return out


@pytest.fixture
def copy(judge: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(judge, tmp_path / "copy"))


def test_show_says_what_export_was_told(judge: Path, reward: Path) -> None:
    shown = works("bundle", "show", judge)
    assert "softmax of label 1" in shown
    assert re.search(r"from PyTorch over \d+ inputs", shown)
    content = json.loads(works("bundle", "show", reward, "--json"))
    assert content["digest"] == load_bundle(reward).digest
    assert content["signed"] is False
    manifest = content["manifest"]
    assert (manifest["name"], manifest["kind"]) == ("rm", "reward")
    assert manifest["lineage"]["base"] == "org/base"
    assert len(manifest["lineage"]["data"]) == 1
    assert manifest["reference"]["count"] == 72
    assert (manifest["template"]["windows"]["most"], manifest["template"]["windows"]["last"]) == (
        8,
        "whole",
    )


def test_the_base_of_a_local_checkpoint_is_its_weights_wherever_they_lie(
    folder: Path, judge: Path
) -> None:
    from ares_stream.training.export import base_identity

    moved = shutil.copytree(folder / "judge", folder / "elsewhere")
    assert load_bundle(judge).manifest.lineage.base == base_identity(moved)
    assert base_identity(folder / "reward") != base_identity(moved)


def test_a_reference_of_ones_own_moves_the_quantiles_and_nothing_else(
    folder: Path, reward: Path, tmp_path: Path
) -> None:
    rows = (folder / "labelled.jsonl").read_text().splitlines()[:24]
    (tmp_path / "mine.jsonl").write_text("\n".join(rows))
    out = tmp_path / "out"
    works("bundle", "reference", reward, tmp_path / "mine.jsonl", "--out", out)
    old, new = load_bundle(reward).manifest, load_bundle(out).manifest
    assert new.reference is not None
    assert old.reference is not None
    assert new.reference.count == 24
    assert set(new.reference.scores) <= set(old.reference.scores)
    assert new.model_copy(update={"reference": old.reference}) == old


def test_calibration_on_ones_own_labels_fits_their_base_rate(
    folder: Path, judge: Path, tmp_path: Path
) -> None:
    import numpy as np

    from ares_stream.scoring.model import calibrate
    from ares_stream.scoring.offline import raw_scores
    from ares_stream.training.examples import read_judgements

    # Labels that the judge knows something of: of the six conversations the two that it scores
    # highest, each given twelve times.
    given, _ = read_judgements([folder / "labelled.jsonl"])
    scores = raw_scores(load_bundle(judge), [row.interaction for row in given])
    high = sorted(set(scores))[-2]
    labelled = tmp_path / "labelled.jsonl"
    lines = [
        {"prompt": row.interaction.prompt, "response": row.interaction.response}
        | {"harmful": score >= high}
        for row, score in zip(given, scores, strict=True)
    ]
    labelled.write_text("\n".join(json.dumps(line) for line in lines))
    out = tmp_path / "out"
    said = works("bundle", "calibrate", judge, labelled, "--out", out)
    assert "72 conversations, AUROC" in said
    bundle = load_bundle(out)
    rows, _ = read_judgements([labelled])
    raw = np.array(raw_scores(bundle, [row.interaction for row in rows]))
    # Platt's targets for 24 harmful of 72 are 25/26 and 1/50; their mean is what maximum
    # likelihood gives the mean probability.
    mean = float(calibrate(raw, bundle.manifest.calibration).mean())
    assert mean == pytest.approx((24 * 25 / 26 + 48 / 50) / 72, abs=1e-3)


def test_a_whole_bundle_verifies(judge: Path) -> None:
    assert load_bundle(judge).digest in works("bundle", "verify", judge)


def test_one_changed_byte_does_not(copy: Path) -> None:
    model = copy / "model.onnx"
    raw = bytearray(model.read_bytes())
    raw[len(raw) // 2] ^= 1
    model.write_bytes(raw)
    assert "its SHA-256 is not the manifest's" in fails("bundle", "verify", copy)
    assert "SHA-256" in fails("bundle", "show", copy)


def test_a_signature_holds_for_its_key_and_these_files_wherever_they_lie(
    copy: Path, folder: Path
) -> None:
    works("bundle", "sign", copy, "--private-key", folder / "mine.pem")
    moved = copy.rename(copy.parent / "moved")
    assert "signed" in works("bundle", "verify", moved, "--public-key", folder / "mine.pub")
    assert json.loads(works("bundle", "show", moved, "--json"))["signed"] is True
    assert (
        load_bundle(moved, signed=signed_by(folder / "mine.pub")).digest
        == load_bundle(moved).digest
    )
    refused = fails("bundle", "verify", moved, "--public-key", folder / "other.pub")
    assert "bundle.sig" in refused


def test_a_bundle_signed_again_bears_the_last_signature(copy: Path, folder: Path) -> None:
    for name in ("mine", "other"):
        works("bundle", "sign", copy, "--private-key", folder / f"{name}.pem")
    works("bundle", "verify", copy, "--public-key", folder / "other.pub")


def test_a_manifest_changed_after_signing_is_refused(copy: Path, folder: Path) -> None:
    works("bundle", "sign", copy, "--private-key", folder / "mine.pem")
    manifest = copy / "bundle.json"
    manifest.write_text(manifest.read_text().replace('"slope":1.0', '"slope":9.0'))
    assert load_bundle(copy).manifest.calibration.slope == 9.0
    with pytest.raises(IntegrityError, match=r"Hash mismatch for \\*'bundle\.json\\*'"):
        load_bundle(copy, signed=signed_by(folder / "mine.pub"))


def test_no_signature_or_rubbish_is_refused(copy: Path, folder: Path) -> None:
    assert "not signed" in fails("bundle", "verify", copy, "--public-key", folder / "mine.pub")
    (copy / "bundle.sig").write_text("{}")
    with pytest.raises(IntegrityError, match="not a signature"):
        load_bundle(copy, signed=signed_by(folder / "mine.pub"))


def test_a_key_that_is_none_is_named(copy: Path, folder: Path) -> None:
    works("bundle", "sign", copy, "--private-key", folder / "mine.pem")
    said = fails("bundle", "sign", copy, "--private-key", folder / "mine.pub")
    assert "not an EC key in PEM" in said
    for key, reason in ((folder / "labelled.jsonl", "not the public part"), (copy, "cannot be")):
        with pytest.raises(SettingsError, match=reason):
            load_bundle(copy, signed=signed_by(key))


def test_what_the_trainers_wrote_cannot_stand_in_for_the_other_kind(
    judge: Path, folder: Path, tmp_path: Path
) -> None:
    said = fails("bundle", "reference", judge, folder / "labelled.jsonl", "--out", tmp_path / "o")
    assert "kind harm, expected reward" in said


def test_a_bundle_is_never_written_over(judge: Path, folder: Path) -> None:
    before = load_bundle(judge).digest
    said = fails("bundle", "export", "harm", folder / "judge", "--out", judge)
    assert "exists already; choose another name" in said
    assert load_bundle(judge).digest == before
