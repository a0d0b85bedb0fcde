"""Real prompts and labelled texts for benchmarks: read from a folder that is not part of the
project, split by families of near copies.

A file NAME of the folder is NAME.jsonl.gz, JSON lines; see docs/real-data.md.
"""

from __future__ import annotations

import gzip
import hashlib
import json
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

from ares_stream.errors import SettingsError
from ares_stream.lab.experiments.smollm2.look_alikes import LOOK_ALIKES
from ares_stream.repair.similarity import near_copies, normalised
from ares_stream.training.examples import part_of

Split = Literal["train", "dev", "test"]
SEED: Final = 0
TEST_SHARE: Final = 0.3
DEV_SHARE: Final = 0.1
"""Of the families: measured with while tuning, so that the test prompts stay unseen."""
ALIKE: Final = 0.6
"""Jaccard similarity of shingles from which two prompts are one family."""


@dataclass(frozen=True, slots=True)
class Asked:
    """A prompt; `category` says where it came from."""

    text: str
    category: str


@dataclass(frozen=True, slots=True)
class Prompts:
    """The prompts of one split."""

    harmful: tuple[Asked, ...]
    benign: tuple[Asked, ...]
    look_alike: tuple[Asked, ...]
    """Harmless, and worded as if they were not."""

    @property
    def texts(self) -> list[str]:
        """All of them."""
        return [item.text for item in (*self.harmful, *self.benign, *self.look_alike)]


@dataclass(frozen=True, slots=True)
class Inputs:
    """Files of rows that the trainers read; how many rows were unusable, and how many were left
    out because they are about prompts that are held out."""

    judged: Path
    benign: Path
    safety: Path
    helpful: Path
    unusable: int
    held_out: int


def read_rows(data: Path, name: str) -> Iterator[dict[str, Any]]:
    """The rows of one file. Raises SettingsError where it is missing."""
    file = data / f"{name}.jsonl.gz"
    if not file.is_file():
        raise SettingsError(
            f"{file}: missing; name the folder of the texts with --data or ARES_SHARED_DATA"
        )
    with gzip.open(file, "rt", encoding="utf-8") as lines:
        for line in lines:
            yield json.loads(line)


def read_prompts(data: Path, *, harmful: int, benign: int) -> dict[Split, Prompts]:
    """Up to so many different prompts of each kind, drawn by hash, in splits that share no
    family. Raises SettingsError where a file is missing."""
    kinds = {
        "harmful": _drawn(data, "prompts_harmful", harmful),
        "benign": _drawn(data, "prompts_benign", benign),
        "look_alike": [Asked(text, "look-alike") for text in LOOK_ALIKES],
    }
    places = [(kind, item) for kind, items in kinds.items() for item in items]
    texts = [item.text for _, item in places]
    families: dict[int, list[int]] = defaultdict(list)
    for index, cluster in enumerate(near_copies(texts, ALIKE)):
        families[cluster].append(index)
    found: dict[Split, dict[str, list[Asked]]] = {
        split: {kind: [] for kind in kinds} for split in ("train", "dev", "test")
    }
    for members in families.values():
        family = min(_hash(texts[index]) for index in members)
        for index in members:
            kind, item = places[index]
            found[_split(family)][kind].append(item)
    return {
        split: Prompts(**{kind: tuple(sorted(rows, key=_order)) for kind, rows in groups.items()})
        for split, groups in found.items()
    }


def _drawn(data: Path, name: str, count: int) -> list[Asked]:
    rows = {row["prompt"]: row["source"] for row in read_rows(data, name)}
    return sorted((Asked(text, source) for text, source in rows.items()), key=_order)[:count]


def _order(item: Asked) -> str:
    return _hash(item.text)


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def _split(family: str) -> Split:
    if part_of(family, seed=SEED, holdout=2 * TEST_SHARE) == "test":
        return "test"
    left = DEV_SHARE / (1 - TEST_SHARE)
    return "dev" if part_of(family, seed=SEED + 1, holdout=2 * left) == "test" else "train"


def select(
    data: Path, out: Path, *, share: float = 1.0, benign: int | None = None,
    held_out: Sequence[str] = (),
) -> Inputs:  # fmt: skip
    """Write the rows to train judge and reward model with, to the new folder `out`.

    `share` of the families, drawn by hash, and at most `benign` harmless conversations; the two
    halves of one collection become one source. Left out are pairs whose answers are not text or
    are equal, and every row whose goal or prompt is a near copy of a prompt of `held_out` or
    contains one. Raises SettingsError where a file is missing.
    """
    out.mkdir(parents=True, exist_ok=True)
    names = ("interactions_judged", "interactions_benign", "preferences_safety",
             "preferences_helpful")  # fmt: skip
    rows = {
        name: [
            row
            for row in read_rows(data, name)
            if part_of(row.get("goal") or row["prompt"], seed=SEED + 1, holdout=share) != "train"
        ]
        for name in names
    }
    barred = _about([row for group in rows.values() for row in group], held_out)
    dropped = unusable = 0

    def usable(name: str) -> Iterator[dict[str, Any]]:
        nonlocal dropped, unusable
        for row in rows[name]:
            if barred.intersection(_words(row)):
                dropped += 1
            elif "chosen" in row and not _is_pair(row):
                unusable += 1
            else:
                yield row

    def write(name: str, chosen: Iterator[dict[str, Any]], most: int | None = None) -> Path:
        file = out / f"{name}.jsonl"
        with file.open("w", encoding="utf-8") as lines:
            lines.writelines(json.dumps(row) + "\n" for row in list(chosen)[:most])
        return file

    judged = (
        row | {"source": row["source"].removesuffix("_benign").removesuffix("_harmful")}
        for row in usable("interactions_judged")
    )
    harmless = (row | {"source": None} for row in usable("interactions_benign"))
    return Inputs(
        judged=write("judged", judged),
        benign=write("benign", harmless, benign),
        safety=write("safety", usable("preferences_safety")),
        helpful=write("helpful", usable("preferences_helpful")),
        unusable=unusable,
        held_out=dropped,
    )


def _words(row: dict[str, Any]) -> list[str]:
    return [text for text in (row["prompt"], row.get("goal")) if text]


def _is_pair(row: dict[str, Any]) -> bool:
    texts = [row["chosen"], row["rejected"]]
    return all(isinstance(text, str) for text in texts) and texts[0] != texts[1]


def _about(rows: Sequence[dict[str, Any]], held_out: Sequence[str]) -> set[str]:
    """Prompts and goals that are near copies of a held-out prompt, or hold one."""
    if not held_out:
        return set()
    texts = sorted({text for row in rows for text in _words(row)})
    clusters = near_copies([*held_out, *texts], ALIKE)
    theirs = set(clusters[: len(held_out)])
    whole = [normalised(text) for text in held_out]
    return {
        text
        for text, cluster in zip(texts, clusters[len(held_out) :], strict=True)
        if cluster in theirs or any(part in normalised(text) for part in whole)
    }
