"""What a bundle's training rows cover, measured with the exported model itself. Needs no torch."""

from __future__ import annotations

import itertools
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Self

import numpy as np
from numpy.typing import NDArray

from ares_stream.errors import InputError, ScoringError
from ares_stream.models.bundles import DOMAIN, DOMAIN_POINTS, Bundle, Domain
from ares_stream.records.interaction import Interaction
from ares_stream.scoring.domain import Space, farthest, limit_of, scripts_of
from ares_stream.scoring.offline import Progress
from ares_stream.scoring.runtime import OnnxModel
from ares_stream.scoring.tokenising import InputEncoder, Reading, Tokens

SHARE: Final = 0.01
"""Of conversations like the training rows, so many are outside; more where few are held out."""
MIN_ROWS: Final = 20
"""Of training rows and of held-out ones: fewer say nothing of what is far."""
MIN_REFERENCE: Final = 100
"""Of a reward model's benign conversations, before it gets a domain without being asked."""
UNKNOWN: Final = 0.02
"""A share of unknown tokens that is never outside."""
_MOST: Final = 1000
_MOST_HELD_OUT: Final = 500
_HELD_OUT_EACH: Final = 3
_RUN: Final = 16


@dataclass(frozen=True, slots=True)
class DomainRows:
    """Conversations that the model was trained on, and others like them that it was not."""

    train: Sequence[Interaction]
    held_out: Sequence[Interaction]

    @classmethod
    def split(cls, rows: Sequence[Interaction]) -> Self:
        """Every third is held out."""
        return cls(
            [row for place, row in enumerate(rows) if place % _HELD_OUT_EACH],
            rows[::_HELD_OUT_EACH],
        )

    def check(self) -> None:
        """Raise InputError where there are too few."""
        if min(len(self.train), len(self.held_out)) < MIN_ROWS:
            raise InputError(
                f"a domain needs {MIN_ROWS} conversations to fit and {MIN_ROWS} to measure, here "
                f"are {len(self.train)} and {len(self.held_out)}; some hundreds are better"
            )


def fit_domain(
    draft: Bundle, rows: DomainRows, folder: Path, progress: Progress | None = None
) -> Domain:
    """Measure the domain of a model with an output `pooled`, and write DOMAIN to the folder.

    Of many rows some are read, evenly. Raises InputError for too few rows or one that cannot be
    read, BundleError where the model gives no states.
    """
    rows.check()
    train, held = _evenly(rows.train, _MOST), _evenly(rows.held_out, _MOST_HELD_OUT)
    encoder = InputEncoder(draft)
    readings = _readings(encoder, [*train, *held])
    onnx = OnnxModel(draft, "cpu", states=True)
    decodes = draft.manifest.kind == "harm"
    windows = [(*item.windows, *(item.decoded if decodes else ())) for item in readings]
    states = _states(onnx, [tokens for item in windows for tokens in item], progress)
    ends = np.cumsum([len(item) for item in windows])
    fitted = ends[len(train) - 1]
    space = Space.of(states[:fitted])
    distances = space.distances(states[fitted:])
    starts = np.concatenate(([0], ends[len(train) :] - fitted))
    farthests = sorted(
        farthest(distances[start:end].tolist()) for start, end in itertools.pairwise(starts)
    )
    space.write(folder / DOMAIN)
    share = max(SHARE, 1 / (len(held) + 1))
    points = farthests
    if len(points) > DOMAIN_POINTS:
        points = np.quantile(farthests, np.linspace(0, 1, DOMAIN_POINTS)).tolist()
    return Domain(
        share=share,
        limit=limit_of(farthests, share),
        distances=tuple(points),
        unknown=max(UNKNOWN, *(encoder.unknown_share(item) for item in readings)),
        scripts=scripts_of(item.response for item in train),
        rows=len(train),
        held_out=len(held),
    )


def _readings(encoder: InputEncoder, rows: Sequence[Interaction]) -> list[Reading]:
    found: list[Reading] = []
    for place, item in enumerate(encoder.read([(row, row.response) for row in rows]), 1):
        if isinstance(item, ScoringError):
            raise InputError(f"conversation {place} of the domain: {item}")
        found.append(item)
    return found


def _states(
    onnx: OnnxModel, windows: Sequence[Tokens], progress: Progress | None
) -> NDArray[np.float32]:
    order = sorted(range(len(windows)), key=lambda place: len(windows[place]))
    runs = [order[start : start + _RUN] for start in range(0, len(order), _RUN)]

    def run(places: Sequence[int]) -> NDArray[np.float32]:
        _, states = onnx.run_with_states([windows[place] for place in places])
        assert states is not None  # noqa: S101 - the session was asked for them
        return states

    parts: list[NDArray[np.float32]] = []
    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as threads:
        for part in threads.map(run, runs):
            parts.append(part)
            if progress is not None:
                progress(min(len(parts) * _RUN, len(windows)), len(windows))
    found = np.concatenate(parts)
    back = np.empty_like(found)
    back[order] = found
    return back


def _evenly(rows: Sequence[Interaction], most: int) -> list[Interaction]:
    step = max(1.0, len(rows) / most)
    return [rows[int(place * step)] for place in range(min(len(rows), most))]
