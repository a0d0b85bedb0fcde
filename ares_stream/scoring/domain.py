"""Whether a conversation is like those that a model was trained on. Pure but for one file read.

A model's state of a text (the mean of its tokens' last hidden states) is compared with those of
its training rows: the Mahalanobis distance from their mean (Lee et al. 2018, arXiv 1807.03888;
for reward models arXiv 2510.13694). Beside it stand two signs that need no model: tokens that the
tokenizer does not know, and letters of a script that no training row is written in.
"""

from __future__ import annotations

import unicodedata
from bisect import bisect_right
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from ares_stream.errors import BundleError
from ares_stream.models.bundles import DOMAIN, Bundle, Domain

UNSEEN_SCRIPT: Final = 0.1
"""Share of an answer's letters in scripts that training did not see, from which it is outside: a
foreign name is less."""
SCRIPT_SHARE: Final = 1e-3
"""Of all letters of the training rows: a script with fewer was not learnt."""

States = NDArray[np.float32]
"""Of windows, [windows, hidden]."""


@dataclass(frozen=True, slots=True)
class Sign:
    """How far a conversation lies from the training rows.

    `quantile` is the share of held-out conversations that lie nearer, by the farthest window;
    `unknown` the share of unknown tokens; `unseen_script` the share of the answer's letters in
    scripts that training did not see; `outside` whether one of them is past its limit.
    """

    quantile: float
    unknown: float
    unseen_script: float
    outside: bool


class Space:
    """The mean of the training rows' states, and the whitening of their covariance."""

    def __init__(self, mean: States, whitening: NDArray[np.float32]) -> None:
        """`mean` [hidden]; `whitening` [hidden, hidden], times a difference from the mean."""
        self.mean = mean
        self.whitening = whitening

    @classmethod
    def of(cls, states: States) -> Space:
        """From states [rows, hidden]. Directions are scaled to unit variance, and the covariance
        is shrunk towards the identity (oracle approximating shrinkage, Chen et al. 2010, IEEE
        TSP 58(10)), so that it can be inverted with fewer rows than directions."""
        wide = np.asarray(states, dtype=np.float64)
        rows, hidden = wide.shape
        mean = wide.mean(0)
        spread = np.maximum(wide.std(0), 1e-6)
        scaled = (wide - mean) / spread
        covariance = scaled.T @ scaled / rows
        squares, trace = float((covariance**2).mean()), float(np.trace(covariance)) / hidden
        left = (rows + 1) * (squares - trace**2 / hidden)
        share = 1.0 if left <= 0 else min(1.0, (squares + trace**2) / left)
        shrunk = (1 - share) * covariance + share * trace * np.eye(hidden)
        values, vectors = np.linalg.eigh(shrunk)
        whitening = vectors / np.sqrt(np.maximum(values, 1e-9)) / spread[:, None]
        return cls(mean.astype(np.float32), whitening.astype(np.float32))

    @classmethod
    def read(cls, bundle: Bundle) -> Space:
        """Of a bundle that has a domain. Raises BundleError where the file is not that."""
        file = bundle.path / DOMAIN
        try:
            with np.load(file, allow_pickle=False) as arrays:
                mean, whitening = arrays["mean"], arrays["whitening"]
        except (OSError, ValueError, KeyError, EOFError) as error:
            raise BundleError(f"{file}: is no domain ({type(error).__name__})") from None
        if mean.ndim != 1 or whitening.shape != (len(mean), len(mean)):
            raise BundleError(f"{file}: mean {mean.shape} and whitening {whitening.shape} differ")
        return cls(mean.astype(np.float32), whitening.astype(np.float32))

    def write(self, file: Path) -> None:
        """As numpy arrays, without pickle."""
        np.savez(file, mean=self.mean, whitening=self.whitening)

    def distances(self, states: States) -> NDArray[np.float64]:
        """Mahalanobis distance of each state [rows, hidden], in standard deviations: over the
        root of the directions, so that a training row has about 1. Shape [rows]."""
        if states.ndim != 2 or states.shape[1] != len(self.mean):
            raise BundleError(
                f"the model's states have shape {states.shape}, its domain {len(self.mean)} "
                "directions"
            )
        whitened = ((states - self.mean) @ self.whitening).astype(np.float64)
        return np.asarray(np.sqrt((whitened**2).mean(1)))


def limit_of(distances: Sequence[float], share: float) -> float:
    """The distance that a new conversation like these passes with a probability of at most
    `share` (split conformal prediction: the next order statistic). 1 / share - 1 are needed."""
    found = sorted(distances)
    place = int(np.ceil((len(found) + 1) * (1 - share) - 1e-9))
    return found[min(place, len(found)) - 1]


def farthest(distances: Sequence[float]) -> float:
    """The largest; infinite where one is no number."""
    return max(item if np.isfinite(item) else np.inf for item in distances)


def sign(distance: float, unknown: float, answer: str, domain: Domain) -> Sign:
    """The sign of a conversation, from its farthest window's distance, its share of unknown
    tokens and its answer."""
    unseen = unseen_share(answer, domain.scripts)
    return Sign(
        quantile=bisect_right(domain.distances, distance) / len(domain.distances),
        unknown=unknown,
        unseen_script=unseen,
        outside=bool(
            distance > domain.limit or unknown > domain.unknown or unseen >= UNSEEN_SCRIPT
        ),
    )


def scripts_of(texts: Iterable[str]) -> tuple[str, ...]:
    """The scripts that the texts are written in, sorted."""
    counts: Counter[str] = Counter()
    for text in texts:
        counts.update(_scripts(text))
    total = sum(counts.values())
    return tuple(sorted(name for name, count in counts.items() if count >= SCRIPT_SHARE * total))


def unseen_share(text: str, known: Sequence[str]) -> float:
    """Share of the text's letters whose script is not among the known ones."""
    if text.isascii() and "LATIN" in known:
        return 0.0
    counts = _scripts(text)
    total = sum(counts.values())
    return sum(count for name, count in counts.items() if name not in known) / max(1, total)


def _scripts(text: str) -> Counter[str]:
    found: Counter[str] = Counter()
    for char, count in Counter(text).items():
        if char.isalpha():
            found[_script(char)] += count
    return found


@lru_cache(maxsize=65_536)
def _script(char: str) -> str:
    """The first word of a letter's name, which is its script's: LATIN, CYRILLIC, CJK, ARABIC.
    Letters of other widths and styles, and those that scripts share, count as Latin."""
    plain = unicodedata.normalize("NFKC", char)[:1] or char
    name = unicodedata.name(plain, "").split(" ")[0].split("-")[0]
    return "LATIN" if name in ("MODIFIER", "FEMININE", "MASCULINE") else name or "UNNAMED"
