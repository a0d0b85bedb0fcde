"""A bundle is whole or it does not load, and judges are independent of the reward model."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ares_stream.errors import BundleError, IntegrityError
from ares_stream.models.bundles import (
    Bundle,
    Calibration,
    Lineage,
    Manifest,
    RewardReference,
    load_bundle,
    refuse_shared_lineage,
    write_bundle,
)
from ares_stream.records.base import canonical_json
from ares_stream.scoring.model import ScoringModel
from tests.support.word_models import rewritten, word_bundle


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    return word_bundle(tmp_path, "judge")


def test_what_was_written_is_what_loads(bundle: Bundle, tmp_path: Path) -> None:
    again = load_bundle(bundle.path, "harm")
    assert again == bundle
    assert set(again.manifest.files) == {"model.onnx", "tokenizer.json"}
    copy = shutil.copytree(bundle.path, tmp_path / "copy")
    assert load_bundle(copy).digest == bundle.digest


def test_no_byte_of_any_file_can_change(bundle: Bundle) -> None:
    for name in bundle.manifest.files:
        file = bundle.path / name
        whole = file.read_bytes()
        for place in (0, len(whole) // 2, len(whole) - 1):
            changed = bytearray(whole)
            changed[place] ^= 1
            file.write_bytes(changed)
            with pytest.raises(IntegrityError, match=f"{name}: its SHA-256"):
                load_bundle(bundle.path)
        file.write_bytes(whole[:-1])
        with pytest.raises(IntegrityError, match=f"{name}: its SHA-256"):
            load_bundle(bundle.path)
        file.write_bytes(whole)
    assert load_bundle(bundle.path) == bundle


def test_any_change_of_the_manifest_is_another_digest(bundle: Bundle) -> None:
    assert load_bundle(rewritten(bundle, name="other")).digest != bundle.digest


def test_a_missing_file_and_a_link_are_refused(bundle: Bundle, tmp_path: Path) -> None:
    moved = bundle.model.rename(tmp_path / "moved.onnx")
    with pytest.raises(IntegrityError, match="missing, or not a plain file"):
        load_bundle(bundle.path)
    bundle.model.symlink_to(moved)
    with pytest.raises(IntegrityError, match="missing, or not a plain file"):
        load_bundle(bundle.path)


def test_a_file_that_nobody_named_is_refused(bundle: Bundle) -> None:
    (bundle.path / "pytorch_model.bin").write_bytes(b"")
    with pytest.raises(IntegrityError, match=r"does not name: pytorch_model\.bin"):
        load_bundle(bundle.path)


def test_a_directory_whose_writing_was_cut_short_is_no_bundle(bundle: Bundle) -> None:
    manifest = bundle.path / "bundle.json"
    whole = manifest.read_bytes()
    for length in (1, len(whole) // 2, len(whole) - 1):
        manifest.write_bytes(whole[:length])
        with pytest.raises(BundleError, match=r"bundle\.json: .*JSON"):
            load_bundle(bundle.path)
    manifest.unlink()
    with pytest.raises(BundleError, match="never finished"):
        load_bundle(bundle.path)
    with pytest.raises(BundleError, match="no such directory"):
        load_bundle(bundle.path / "absent")


def test_a_write_that_fails_leaves_nothing(bundle: Bundle, tmp_path: Path) -> None:
    before = sorted(tmp_path.iterdir())
    with pytest.raises(BundleError, match="cannot be written"):
        write_bundle(tmp_path / "out", bundle.manifest, {"model.onnx": tmp_path / "absent"})
    assert sorted(tmp_path.iterdir()) == before


def test_nothing_is_written_over(bundle: Bundle) -> None:
    with pytest.raises(BundleError, match="immutable"):
        write_bundle(bundle.path, bundle.manifest, {})


def test_a_judge_cannot_stand_in_for_a_reward_model(bundle: Bundle) -> None:
    with pytest.raises(BundleError, match="kind harm, expected reward"):
        load_bundle(bundle.path, "reward")


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"schema": "ares.bundle/2"}, "schema"),
        ({"kind": "policy"}, "kind"),
        ({"surprise": 1}, "surprise"),
        ({"outputs": {"activation": "identity", "labels": [0]}}, "a harm judge needs activation"),
        ({"outputs": {"activation": "sigmoid", "labels": []}}, "outputs.labels"),
        ({"calibration": {"slope": "NaN"}}, "calibration.slope"),
        ({"files": {"../model.onnx": "a" * 64}}, "not a plain file name"),
        ({"files": {"bundle.json": "a" * 64}}, "not a plain file name"),
    ],
)
def test_a_wrong_manifest_names_the_field(
    bundle: Bundle, change: dict[str, object], field: str
) -> None:
    with pytest.raises(BundleError, match=field):
        load_bundle(rewritten(bundle, **change))


def test_a_manifest_must_name_model_and_tokenizer(bundle: Bundle) -> None:
    files = {"tokenizer.json": bundle.manifest.files["tokenizer.json"]}
    with pytest.raises(IntegrityError, match=r"does not name model\.onnx"):
        load_bundle(rewritten(bundle, files=files))


def test_a_manifest_without_end_is_not_read(bundle: Bundle) -> None:
    with (bundle.path / "bundle.json").open("ab") as file:
        file.truncate(9 << 20)
    with pytest.raises(BundleError, match="larger than"):
        load_bundle(bundle.path)


def test_reference_scores_must_be_sorted() -> None:
    with pytest.raises(ValueError, match="sorted"):
        RewardReference(version="c" * 64, count=2, scores=(1.0, 0.0))


def test_reference_scores_that_are_all_the_same_say_nothing() -> None:
    with pytest.raises(ValueError, match="nothing could be called high"):
        RewardReference(version="c" * 64, count=2, scores=(1.0, 1.0))


@pytest.mark.parametrize("slope", [0.0, -1.0])
def test_a_calibration_never_turns_a_ranking_round(slope: float) -> None:
    with pytest.raises(ValueError, match="greater than 0"):
        Calibration(slope=slope)


@given(
    st.lists(st.floats(-1e6, 1e6), min_size=2, max_size=40).filter(lambda s: min(s) < max(s)),
    st.floats(0.1, 10),
    st.text(min_size=1, max_size=20),
)
def test_a_manifest_survives_its_own_json(scores: list[float], slope: float, name: str) -> None:
    manifest = Manifest.model_validate(
        {
            "name": name,
            "kind": "reward",
            "template": {"first": "{{ prompt }}", "max_length": 9},
            "outputs": {"activation": "identity", "labels": [0]},
            "lineage": {"base": "b"},
            "calibration": {"slope": slope},
            "reference": {"version": "c" * 64, "count": 9, "scores": sorted(scores)},
        }
    )
    raw = canonical_json(manifest.model_dump(mode="json", exclude_none=True))
    assert Manifest.model_validate_json(raw) == manifest
    assert json.loads(raw)["schema"] == "ares.bundle/1"


@pytest.mark.parametrize(
    ("theirs", "shared"),
    [
        (Lineage(base="a", data=("1" * 64,)), "the base a"),
        (Lineage(base="b", data=("0" * 64, "1" * 64)), "1 training files"),
    ],
)
def test_a_judge_of_the_reward_models_base_or_data_is_refused(
    tmp_path: Path, theirs: Lineage, shared: str
) -> None:
    reward = word_bundle(tmp_path, "rm", "reward", lineage=Lineage(base="a", data=("0" * 64,)))
    independent = word_bundle(tmp_path, "ok", lineage=Lineage(base="c", data=("2" * 64,)))
    refuse_shared_lineage([independent], reward)
    kin = word_bundle(tmp_path, "kin", lineage=theirs)
    with pytest.raises(BundleError, match=f"judge kin and reward model rm share {shared}"):
        refuse_shared_lineage([independent, kin], reward)


def rewrite_in_place(file: Path) -> None:
    content = file.read_bytes()
    file.write_bytes(content)


def replace_by_a_copy(file: Path) -> None:
    copy = file.with_name("copy")
    copy.write_bytes(file.read_bytes())
    os.utime(copy, ns=(file.stat().st_atime_ns, file.stat().st_mtime_ns))
    copy.replace(file)


def replace_by_a_link(file: Path) -> None:
    kept = file.rename(file.with_name("kept"))
    file.symlink_to(kept)


def until_the_clock_of_files_has_moved(folder: Path) -> None:
    """Some file systems count time in steps of milliseconds."""
    first = max(item.stat().st_ctime_ns for item in folder.iterdir())
    probe = folder.parent / "probe"
    for _ in range(1_000_000):
        probe.touch()
        if probe.stat().st_ctime_ns > first:
            return
    raise AssertionError("the clock of files stands still")


@pytest.mark.parametrize(
    "change", [rewrite_in_place, replace_by_a_copy, replace_by_a_link, Path.unlink]
)
@pytest.mark.parametrize("name", ["model.onnx", "tokenizer.json"])
def test_a_file_that_changes_between_verification_and_loading_is_noticed(
    change: Callable[[Path], object], name: str, tmp_path: Path
) -> None:
    found = word_bundle(tmp_path, "judge")
    folder = found.path
    found.check_unchanged()
    ScoringModel(found, "cpu")
    until_the_clock_of_files_has_moved(folder)
    change(folder / name)
    with pytest.raises(IntegrityError, match=f"{name}: changed while the bundle was loaded"):
        found.check_unchanged()
    if change is not Path.unlink:
        with pytest.raises(IntegrityError, match="changed while the bundle was loaded"):
            ScoringModel(found, "cpu")
