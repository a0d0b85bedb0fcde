"""Records of every kind, bent: one value of the JSON is another, is gone, or is there twice."""

from __future__ import annotations

import json
from collections.abc import Iterator
from copy import deepcopy
from typing import Any, Final

from hypothesis import strategies as st

ODD: Final[tuple[Any, ...]] = (
    None, True, False, -1, 0, 1, 2**31, 2**32, 2**63 - 1, 2**63, 2**70, 10**30, 10**400, -(2**63),
    0.5, -0.0, 1.5, 1e308, -1e308, 5e-324, "", " ", "x", "x" * 300, "\x1b[31m\u202e<b>", "\x00",
    "d" * 64, "0" * 64, "none", "cfr", "a=b", [], {}, [[]], [None], [1, 2], {"": None},
    {"cfr": 1}, {"x": {"y": []}}, "2026-11-01T00:00:00Z", "0001-01-01T00:00:00+23:59",
    "9999-12-31T23:59:59.999999-23:59", "1969-12-31T23:59:59Z", 253402300800, -62135596801,
)  # fmt: skip
"""Other types, sizes, signs and times than a field has, and values that others have."""
Path = tuple[str | int, ...]


def places(value: Any, at: Path = ()) -> Iterator[Path]:
    """Of every value inside."""
    children: Iterator[tuple[str | int, Any]] = iter(())
    if isinstance(value, dict):
        children = iter(value.items())
    elif isinstance(value, list):
        children = iter(enumerate(value))
    for name, child in children:
        yield (*at, name)
        yield from places(child, (*at, name))


def bend(document: Any, path: Path, how: str, odd: Any) -> None:
    """Change what stands at a place: "another", "gone", "twice", "beside" or another "key"."""
    for step in path[:-1]:
        document = document[step]
    name: Any = path[-1]
    if how == "another":
        document[name] = deepcopy(odd)
    elif how == "gone":
        del document[name]
    elif how == "twice" and isinstance(document, list):
        document.append(deepcopy(document[name]))
    elif how == "beside" and isinstance(document, dict):
        document[f"{name}x"] = deepcopy(odd)
    elif how == "key" and isinstance(document, dict):
        document[str(odd)[:40]] = document.pop(name)


@st.composite
def bent(draw: st.DrawFn, whole: bytes, most: int = 2) -> bytes:
    """The record's JSON with up to `most` changes."""
    document = json.loads(whole)
    for _ in range(draw(st.integers(1, most))):
        found = [*places(document)]
        if not found:
            break
        how = draw(st.sampled_from(["another"] * 5 + ["gone", "twice", "beside", "key"]))
        bend(document, draw(st.sampled_from(found)), how, draw(st.sampled_from(ODD)))
    return json.dumps(document).encode()
