"""Why a GPU cannot be used, in one line, before a model is loaded."""

from __future__ import annotations

import ctypes
from pathlib import Path
from typing import Any

import pytest

from ares_stream.scoring.cuda import missing


class Driver:
    """What a driver answers to the two calls."""

    def __init__(self, code: int, version: int) -> None:
        self._code, self._version = code, version

    def cuInit(self, _: int) -> int:  # noqa: N802
        return self._code

    def cuDriverGetVersion(self, into: Any) -> int:  # noqa: N802
        ctypes.cast(into, ctypes.POINTER(ctypes.c_int))[0] = self._version
        return 0


@pytest.mark.parametrize(
    ("code", "version", "said"),
    [
        (100, 13000, "sees no GPU"),
        (803, 13000, "cuInit answers 803"),
        (0, 12080, "is of CUDA 12.8, and this onnxruntime needs 13.0"),
        (0, 13000, None),
        (0, 14010, None),
    ],
)
def test_the_drivers_answer_is_told(code: int, version: int, said: str | None) -> None:
    found = missing("13.0", load=lambda _: Driver(code, version))
    assert found is None if said is None else said in (found or "")


def test_a_container_without_a_driver_is_told_how_to_get_one(tmp_path: Path) -> None:
    nowhere = str(tmp_path / "libcuda.so.1")
    assert "--gpus all" in (missing("13.0", load=lambda _: ctypes.CDLL(nowhere)) or "")


@pytest.mark.parametrize("needed", ["", "unknown"])
def test_an_onnxruntime_that_does_not_say_its_cuda_is_taken_as_it_is(needed: str) -> None:
    assert missing(needed, load=lambda _: Driver(0, 12000)) is None
