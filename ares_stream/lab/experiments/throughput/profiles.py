"""What is measured together: who runs side by side, on which loads."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Literal

from ares_stream.lab.experiments.throughput.contestants import GUARANTEES, OURS

Models = Literal["null", "MiniLM"]
EVERYONE: Final = tuple(GUARANTEES)
EXACT: Final = tuple(name for name, kind in GUARANTEES.items() if kind == "exactly once")
HAND: Final = (OURS, "confluent")


@dataclass(frozen=True, slots=True)
class Load:
    """`count` records of `size` bytes each (None: chats of mixed lengths), sent at once."""

    size: int | None
    count: int


@dataclass(frozen=True, slots=True)
class Cell:
    """What runs side by side: each contestant with so many processes, on so many partitions."""

    models: Models
    partitions: int
    loads: Sequence[Load]
    contestants: Sequence[str] = EVERYONE
    processes: int = 1
    rounds: int = 2
    shares: Sequence[float] = ()
    """Of the capacity on the first load: steady rates at which latency is measured."""
    steady_seconds: float = 8.0


@dataclass(frozen=True, slots=True)
class Profile:
    """Cells, and the lines that `ares scan` and the plain loop read."""

    cells: Sequence[Cell]
    scans: Sequence[tuple[Models, Load]] = ()
    scan_rounds: int = 2


KB: Final = 1000
STEADY: Final = (0.3, 0.6, 0.8)
FILES: Final[Sequence[tuple[Models, Load]]] = (
    ("null", Load(KB, 30_000)),
    ("MiniLM", Load(None, 200)),
)
QUICK: Final = Profile(
    cells=(
        Cell("null", 4, [Load(KB, 4000)], shares=[0.6], rounds=3, steady_seconds=6),
        Cell("null", 64, [Load(KB, 4000)], contestants=HAND, rounds=3),
        Cell("null", 4, [Load(200, 4000), Load(10 * KB, 1000)], contestants=EXACT),
        Cell("MiniLM", 4, [Load(None, 192)], contestants=HAND, shares=[0.6], steady_seconds=12),
    ),
    scans=FILES,
)
PARTS: Final[Mapping[str, Profile]] = {
    "partitions": Profile(
        [
            Cell("null", 1, [Load(KB, 4000)], contestants=HAND, rounds=3),
            Cell("null", 4, [Load(KB, 4000)], rounds=3),
            Cell("null", 16, [Load(KB, 4000)], contestants=HAND, rounds=3),
            Cell("null", 64, [Load(KB, 4000), Load(KB, 20_000)], contestants=HAND, rounds=3),
        ]
    ),
    "latency": Profile(
        [
            Cell("null", 4, [Load(KB, 4000)], shares=STEADY),
            Cell("null", 64, [Load(KB, 4000)], contestants=HAND, shares=STEADY),
        ]
    ),
    "backlogs": Profile(
        [
            Cell(
                "null",
                4,
                [Load(KB, 1000), Load(KB, 10_000), Load(KB, 100_000)],
                contestants=HAND,
            )
        ]
    ),
    "sizes": Profile(
        [
            Cell(
                "null",
                4,
                [
                    # Four letters of text, the least that a record can hold; then 0.2 KB of text.
                    Load(200, 4000),
                    Load(400, 4000),
                    Load(KB, 4000),
                    Load(10 * KB, 1000),
                    Load(100 * KB, 100),
                ],
                contestants=EXACT,
                rounds=3,
            )
        ]
    ),
    "processes": Profile(
        [
            Cell("null", 4, [Load(KB, 10_000)], contestants=HAND, processes=2, rounds=3),
            Cell("MiniLM", 4, [Load(None, 256)], contestants=HAND, processes=2),
        ]
    ),
    "chats": Profile([Cell("MiniLM", 4, [Load(None, 256)], contestants=HAND, rounds=3)]),
    "chats-latency": Profile(
        [
            Cell(
                "MiniLM",
                4,
                [Load(None, 128)],
                contestants=HAND,
                rounds=1,
                shares=STEADY,
                steady_seconds=15,
            )
        ]
    ),
    "files": Profile([], FILES),
}
"""The full profile, in parts of which each takes minutes: peers of the same guarantee, and all of
them where they are cheap to ask."""
FULL: Final = Profile(
    [cell for part in PARTS.values() for cell in part.cells],
    [scan for part in PARTS.values() for scan in part.scans],
)
PROFILES: Final[Mapping[str, Profile]] = {"quick": QUICK, "full": FULL, **PARTS}
"""By name; a part of the full profile is a profile too."""
