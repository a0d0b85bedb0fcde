"""Why CUDA cannot be used here, asked of the driver before a model is loaded.

ONNX Runtime goes on without a GPU and says why on stderr alone, over several lines. The driver's
own answers: CUDA driver API, cuInit and cuDriverGetVersion
(https://docs.nvidia.com/cuda/cuda-driver-api/).
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from typing import Any, Final

DRIVER: Final = "libcuda.so.1"
NO_DEVICE: Final = 100
"""CUDA_ERROR_NO_DEVICE."""


def missing(needed: str, *, load: Callable[[str], Any] = ctypes.CDLL) -> str | None:
    """What is not here, for an ONNX Runtime that was built for CUDA of the version `needed`, such
    as 13.0; None where the driver works."""
    try:
        driver = load(DRIVER)
    except OSError:
        return (
            f"there is no {DRIVER}, a GPU's driver: give the container a GPU (`--gpus all`, or the "
            "lane's resources and runtime class)"
        )
    code = int(driver.cuInit(0))
    if code == NO_DEVICE:
        return f"{DRIVER} sees no GPU: none was given to this container"
    if code:
        return f"{DRIVER}: cuInit answers {code}"
    version = ctypes.c_int()
    if driver.cuDriverGetVersion(ctypes.byref(version)):
        return None
    major, minor = version.value // 1000, version.value % 1000 // 10
    if needed.split(".")[0].isdigit() and major < int(needed.split(".")[0]):
        return f"{DRIVER} is of CUDA {major}.{minor}, and this onnxruntime needs {needed}"
    return None
