"""Which adapters the registry takes: what a policy server loads, and nothing else."""

import json
import struct
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file

from ares_stream.errors import BundleError, IntegrityError
from ares_stream.models.adapters import adapter_digest, check_adapter
from ares_stream.models.releases import Author
from ares_stream.models.store import Artefact, ReleaseStore
from tests.support.adapters import MODULE, write_adapter, write_tensors
from tests.support.failures import DAY

LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"0" * 64 + b"\nsize 9\n"
A, B = f"{MODULE}.lora_A.weight", f"{MODULE}.lora_B.weight"


def weights(folder: Path) -> Path:
    return folder / "adapter_model.safetensors"


def test_a_plain_adapter_is_taken_and_says_what_it_changes(tmp_path: Path) -> None:
    folder = write_adapter(tmp_path / "adapter", rank=16)
    found = check_adapter(folder)
    assert (found.rank, found.modules) == (16, ("model.layers.0.self_attn.q_proj",))
    assert load_file(weights(folder))[A].shape == (16, 8), "a file that the library reads"


@pytest.mark.parametrize(
    ("config", "complaint"),
    [
        ({"peft_type": "PROMPT_TUNING"}, r"peft_type: .PROMPT_TUNING."),
        ({"peft_type": "LOHA"}, "loads LORA only"),
        ({"use_dora": True}, "no DoRA"),
        ({"rank": 17}, "rank 17 is over the policy server's limit of 16"),
        ({"r": 0}, "r: Input should be greater"),
        ({"lora_alpha": None}, "lora_alpha"),
        ({"target_modules": []}, "target_modules"),
        ({"target_modules": ["q_proj", "lm_head"]}, "lm_head is a head"),
        ({"modules_to_save": ["score"]}, "modules_to_save: score"),
        ({"bias": "all"}, "without biases"),
        ({"task_type": "SEQ_CLS"}, "task_type: SEQ_CLS"),
        ({"rank_pattern": {"q_proj": 8}}, "rank_pattern"),
        ({"trainable_token_indices": [1]}, "trained embeddings"),
    ],
)
def test_an_adapter_that_a_server_refuses_is_refused_with_the_field(
    tmp_path: Path, config: dict[str, Any], complaint: str
) -> None:
    with pytest.raises(BundleError, match=complaint):
        check_adapter(write_adapter(tmp_path / "adapter", **config))


@pytest.mark.parametrize(
    ("name", "content", "complaint"),
    [
        ("adapter_config.json", b"{}", r"peft_type: null"),
        ("adapter_config.json", b"[]", "expected an object"),
        ("adapter_config.json", b"{", "not JSON"),
        ("adapter_config.json", b"\xff\xfe", "not JSON"),
        ("adapter_config.json", b"[" * 100_000, "not JSON"),
        ("adapter_config.json", LFS, "Git LFS pointer"),
        ("adapter_model.safetensors", LFS, "Git LFS pointer"),
        ("adapter_model.safetensors", b"", "cut short"),
        ("adapter_model.safetensors", b"garbage weights" * 9, "not a safetensors file"),
        ("adapter_model.safetensors", (1 << 40).to_bytes(8, "little") + b"{}", "cut short"),
        ("adapter_model.safetensors", (2).to_bytes(8, "little") + b"{}", "holds no tensor"),
    ],
)
def test_files_that_are_not_what_their_name_says_are_refused(
    tmp_path: Path, name: str, content: bytes, complaint: str
) -> None:
    folder = write_adapter(tmp_path / "adapter")
    (folder / name).write_bytes(content)
    with pytest.raises(BundleError, match=complaint) as refused:
        check_adapter(folder)
    assert name in str(refused.value)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("shapes", "complaint"),
    [
        ({A: [8, 8], B: [8, 8]}, "has rank 8, adapter_config.json says 4"),
        ({A: [4, 8]}, "lacks lora_B"),
        ({B: [8, 4]}, "lacks lora_A"),
        ({A: [4, 8], B: [8, 3]}, "do not fit"),
        ({A: [4, 8], B: [8, 4], "base_model.model.score.weight": [2, 8]}, "not a factor"),
        ({A: [4, 8], B: [8, 4], f"{MODULE}.lora_magnitude_vector": [8, 1]}, "not a factor"),
        ({"base_model.model.lm_head.lora_A.weight": [4, 8]}, "changes a head"),
    ],
)
def test_tensors_that_are_no_plain_lora_are_refused(
    tmp_path: Path, shapes: dict[str, list[int]], complaint: str
) -> None:
    folder = write_adapter(tmp_path / "adapter")
    write_tensors(weights(folder), shapes)
    with pytest.raises(BundleError, match=complaint):
        check_adapter(folder)


@pytest.mark.parametrize("number", [float("nan"), float("inf"), float("-inf")])
def test_a_number_that_is_none_is_refused(tmp_path: Path, number: float) -> None:
    folder = write_adapter(tmp_path / "adapter")
    raw = weights(folder).read_bytes()
    weights(folder).write_bytes(raw[:-4] + struct.pack("<f", number))
    with pytest.raises(BundleError, match="holds a number that is none"):
        check_adapter(folder)


def test_a_file_that_is_cut_anywhere_is_refused(tmp_path: Path) -> None:
    folder = write_adapter(tmp_path / "adapter")
    raw = weights(folder).read_bytes()
    for length in range(0, len(raw), 7):
        weights(folder).write_bytes(raw[:length])
        with pytest.raises(BundleError):
            check_adapter(folder)


@settings(
    max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    place=st.integers(0, 10_000),
    flip=st.integers(1, 255),
    header=st.recursive(
        st.none() | st.booleans() | st.integers() | st.text(max_size=5),
        lambda inner: (
            st.lists(inner, max_size=3)
            | st.dictionaries(
                st.sampled_from([A, B, "dtype", "shape", "data_offsets", "x"]), inner, max_size=3
            )
        ),
        max_leaves=8,
    ),
)
def test_whatever_the_file_holds_it_is_taken_or_refused_in_one_line(
    tmp_path: Path, place: int, flip: int, header: Any
) -> None:
    folder = write_adapter(tmp_path / "adapter")
    raw = bytearray(weights(folder).read_bytes())
    raw[place % len(raw)] ^= flip
    head = json.dumps(header).encode()
    for content in (bytes(raw), len(head).to_bytes(8, "little") + head):
        weights(folder).write_bytes(content)
        said = ""
        try:
            check_adapter(folder)
        except BundleError as error:
            said = str(error)
        assert "\n" not in said


def test_the_registry_takes_what_can_be_served_and_copies_nothing_else(tmp_path: Path) -> None:
    store = ReleaseStore(str(tmp_path / "registry"), max_rank=16)
    author = Author("anna", DAY)
    large = Artefact("chat", "policy", write_adapter(tmp_path / "large", rank=32))
    with pytest.raises(BundleError, match="--max-lora-rank"):
        store.propose([large], author)
    assert store.log().releases == ()
    assert not (tmp_path / "registry" / "models").exists()

    roomy = ReleaseStore(str(tmp_path / "registry"), max_rank=32)
    (release,) = roomy.propose([large], author)
    assert release.digest == adapter_digest(large.path)
    (large.path / "optimizer.pt").write_bytes(b"")
    with pytest.raises(IntegrityError, match="would have to be unpickled"):
        roomy.propose([large], author)
