"""Whatever stands in the JSON of somebody else's file, it is taken or refused with one error."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ares_stream.errors import AresError
from ares_stream.models.adapters import check_adapter
from ares_stream.models.bundles import load_bundle
from ares_stream.models.weights import check_safetensors
from tests.support.adapters import write_adapter
from tests.support.bent_records import ODD, bend, places
from tests.support.word_models import word_bundle

MORE = (*ODD, float("inf"), float("-inf"), float("nan"), 0.0, 128.0, [0.0, 128.0], "F32", "F8")
NESTED = b"[" * 100_000


def bent_documents(whole: Any, count: int) -> list[bytes]:
    """The JSON with one or two of its values changed, and some that are not even that."""
    chance = random.Random(1)
    found: list[bytes] = [b"", b"null", b"[]", b'{"a": ' + NESTED, b"\xff\xfe", b'{"a": 1e999}']
    for _ in range(count):
        document = json.loads(json.dumps(whole))
        for _ in range(chance.randint(1, 2)):
            if there := list(places(document)):
                how = chance.choice(["another", "another", "gone", "twice", "beside", "key"])
                bend(document, chance.choice(there), how, chance.choice(MORE))
        found.append(json.dumps(document).encode())
    return found


def header_of(file: Path) -> tuple[Any, bytes]:
    raw = file.read_bytes()
    end = 8 + int.from_bytes(raw[:8], "little")
    return json.loads(raw[8:end]), raw[end:]


@pytest.mark.parametrize("reader", [lambda folder, file: check_adapter(folder),
                                    lambda folder, file: check_safetensors(file)])  # fmt: skip
def test_a_bent_header_of_safetensors(
    tmp_path: Path, reader: Callable[[Path, Path], object]
) -> None:
    folder = write_adapter(tmp_path / "adapter")
    file = folder / "adapter_model.safetensors"
    header, tensors = header_of(file)
    told: list[str] = []
    for raw in bent_documents(header, 250):
        file.write_bytes(len(raw).to_bytes(8, "little") + raw + tensors)
        try:
            reader(folder, file)
        except AresError as error:
            told.append(str(error))
    assert len(told) > 80
    assert not [line for line in told if "\n" in line]


def test_a_bent_configuration_of_an_adapter(tmp_path: Path) -> None:
    folder = write_adapter(tmp_path / "adapter")
    file = folder / "adapter_config.json"
    told: list[str] = []
    for raw in bent_documents(json.loads(file.read_bytes()), 250):
        file.write_bytes(raw)
        try:
            check_adapter(folder)
        except AresError as error:
            told.append(str(error))
    assert len(told) > 80
    assert not [line for line in told if "\n" in line]


def test_a_bent_manifest_of_a_bundle(tmp_path: Path) -> None:
    bundle = word_bundle(tmp_path, "reward", "reward")
    file = bundle.path / "bundle.json"
    whole = json.loads(file.read_bytes())
    told: list[str] = []
    for raw in bent_documents(whole, 250):
        file.write_bytes(raw)
        try:
            load_bundle(bundle.path, "reward")
        except AresError as error:
            told.append(str(error))
    assert len(told) > 40
    assert not [line for line in told if "\n" in line]
