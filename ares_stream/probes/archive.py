"""The best finds per cell of the taxonomy: MAP-Elites with several elites per cell. Pure.

pyribs keeps one elite per cell and numeric solution vectors; here a cell keeps several, since
unlike prompts that fail for the same topic and tactic are different weaknesses, and a solution
is a composition and a text. So it is these few lines rather than that library.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator
from dataclasses import dataclass
from typing import Generic, TypeVar

Cell = TypeVar("Cell", bound=Hashable)
Solution = TypeVar("Solution")


@dataclass(frozen=True, slots=True)
class Elite(Generic[Solution]):
    """A solution and what it earned."""

    solution: Solution
    fitness: float


class Archive(Generic[Cell, Solution]):
    """At most `depth` elites per cell, best first; equal fitness keeps the earlier one."""

    def __init__(self, depth: int = 4) -> None:
        if depth < 1:
            raise ValueError("depth must be at least 1")
        self.depth = depth
        self._cells: dict[Cell, list[Elite[Solution]]] = {}

    def add(self, cell: Cell, solution: Solution, fitness: float) -> bool:
        """Offer a solution; True when the cell keeps it. Fitness 0 or less is never kept."""
        if not fitness > 0:
            return False
        elites = self._cells.setdefault(cell, [])
        for known in elites:
            if known.solution == solution:
                if known.fitness >= fitness:
                    return False
                elites.remove(known)
                break
        place = sum(1 for elite in elites if elite.fitness >= fitness)
        if place >= self.depth:
            return False
        elites.insert(place, Elite(solution, fitness))
        del elites[self.depth :]
        return True

    def elites(self) -> Iterator[tuple[Cell, Elite[Solution]]]:
        """Every elite, cells in the order of their first elite."""
        for cell, elites in self._cells.items():
            for elite in elites:
                yield cell, elite

    def __len__(self) -> int:
        return sum(len(elites) for elites in self._cells.values())

    @property
    def coverage(self) -> int:
        """Number of cells that hold an elite."""
        return len(self._cells)
