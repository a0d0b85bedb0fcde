"""Every composition that a taxonomy allows, numbered. Pure.

A composition is one component per axis. Selection works on its number alone: the mixed-radix
value of the component indices, first axis most significant, as numpy's ravel_multi_index.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from ares_stream.errors import SettingsError

MAX_COMPOSITIONS = 2_000_000
"""Selection scores every composition per batch; beyond this that takes seconds and gigabytes."""

Indices = NDArray[np.int64]
Floats = NDArray[np.float64]
Singles = NDArray[np.float32]
Mask = NDArray[np.bool_]


@dataclass(frozen=True)
class Space:
    """`axes`: names; `components`: per axis the ids; `allowed`: which numbers make sense.

    Raises SettingsError when an axis is empty, the space is too large, or nothing is allowed.
    """

    axes: tuple[str, ...]
    components: tuple[tuple[str, ...], ...]
    allowed: Mask = field(repr=False)

    def __post_init__(self) -> None:
        if len(self.axes) < 2 or len(self.axes) != len(self.components):
            raise SettingsError("taxonomy: needs at least two axes, each with its components")
        for axis, ids in zip(self.axes, self.components, strict=True):
            if not ids:
                raise SettingsError(f"taxonomy: axis {axis} has no component left")
        if len(self) > MAX_COMPOSITIONS:
            raise SettingsError(
                f"taxonomy: {len(self):,} compositions, at most {MAX_COMPOSITIONS:,} can be "
                "searched; disable components or transforms"
            )
        if self.allowed.shape != (len(self),) or not self.allowed.any():
            raise SettingsError("taxonomy: the constraints allow no composition")

    @classmethod
    def full(cls, **axes: Sequence[str]) -> Space:
        """A space without constraints."""
        components = tuple(tuple(ids) for ids in axes.values())
        count = int(np.prod([len(ids) for ids in components]))
        if count > MAX_COMPOSITIONS:
            raise SettingsError(f"taxonomy: {count:,} compositions, at most {MAX_COMPOSITIONS:,}")
        return cls(tuple(axes), components, np.ones(count, dtype=bool))

    def __len__(self) -> int:
        return int(np.prod(self.sizes))

    @cached_property
    def sizes(self) -> tuple[int, ...]:
        """Number of components per axis."""
        return tuple(len(ids) for ids in self.components)

    @cached_property
    def numbers(self) -> Indices:
        """The allowed compositions, ascending."""
        return np.flatnonzero(self.allowed)

    def has(self, ids: Mapping[str, str]) -> bool:
        """Whether these are one component for each axis."""
        return ids.keys() == set(self.axes) and all(
            ids[axis] in known for axis, known in zip(self.axes, self.components, strict=True)
        )

    def axis(self, name: str) -> int:
        """Place of an axis. Raises SettingsError for one that is not there."""
        try:
            return self.axes.index(name)
        except ValueError:
            raise SettingsError(f"taxonomy: no axis {name}; axes are {list(self.axes)}") from None

    def unravel(self, numbers: Indices) -> Indices:
        """Component indices, shape (len(numbers), axes)."""
        return np.stack(np.unravel_index(numbers, self.sizes), axis=1)

    def ravel(self, indices: Indices) -> Indices:
        """Numbers of compositions given as component indices, shape (n, axes)."""
        return np.asarray(np.ravel_multi_index(tuple(np.asarray(indices).T), self.sizes))

    def ids(self, number: int) -> dict[str, str]:
        """axis → component id of one composition."""
        indices = np.unravel_index(number, self.sizes)
        return {
            axis: ids[int(index)]
            for axis, ids, index in zip(self.axes, self.components, indices, strict=True)
        }

    def number(self, ids: Mapping[str, str]) -> int:
        """The inverse of `ids`. Raises SettingsError that names the axis."""
        indices = []
        for axis, known in zip(self.axes, self.components, strict=True):
            try:
                indices.append(known.index(ids[axis]))
            except (KeyError, ValueError):
                raise SettingsError(
                    f"taxonomy: axis {axis} has no component {ids.get(axis)!r}"
                ) from None
        return int(np.ravel_multi_index(tuple(indices), self.sizes))

    def project(self, axes: Sequence[str]) -> Indices:
        """For every composition, its number in the space of these axes alone."""
        places = [self.axis(name) for name in axes]
        indices = np.unravel_index(np.arange(len(self)), self.sizes)
        return np.asarray(
            np.ravel_multi_index(
                tuple(indices[place] for place in places),
                tuple(self.sizes[place] for place in places),
            )
        )

    def pairs(self) -> tuple[tuple[int, int], ...]:
        """Every pair of axes (places) that both have a choice."""
        open_axes = [place for place, size in enumerate(self.sizes) if size > 1]
        return tuple(itertools.combinations(open_axes, 2))
