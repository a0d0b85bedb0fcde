"""Results that take minutes, each made once for what it depends on."""

from __future__ import annotations

import hashlib
import shutil
import time
from collections.abc import Callable, Mapping
from importlib.metadata import version
from pathlib import Path
from types import ModuleType
from typing import Any, Final

from ares_stream.records.base import digest

_LIBRARIES: Final = ("torch", "transformers", "peft")


class Kept:
    """Folders under `root`, named by stage and by the digest of all that went in.

    `seconds` holds what each stage took when it was made in this process; a stage that was
    found takes none.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self.seconds: dict[str, float] = {}

    def place(self, stage: str, key: Mapping[str, Any]) -> Path:
        """Where the result for this key belongs."""
        return self.root / f"{stage}-{digest(dict(key))[:16]}"

    def made(self, stage: str, key: Mapping[str, Any], make: Callable[[Path], None]) -> Path:
        """The result's folder. `make` fills an empty one, which appears whole or not at all."""
        place = self.place(stage, key)
        if place.is_dir():
            return place
        partial = place.with_suffix(".partial")
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        started = time.monotonic()
        make(partial)
        self.seconds[stage] = round(time.monotonic() - started, 1)
        partial.replace(place)
        return place


def code(*modules: ModuleType) -> str:
    """Digest of these modules' sources and of the libraries' versions, for keys: a result of
    other code is not the result of this code."""
    found = hashlib.sha256(" ".join(version(name) for name in _LIBRARIES).encode())
    for module in modules:
        found.update(Path(str(module.__file__)).read_bytes())
    return found.hexdigest()
