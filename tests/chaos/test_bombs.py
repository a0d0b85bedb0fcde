"""What a megabyte of each codec can take of memory, at its worst, is bounded and told.

pytest tests/chaos/test_bombs.py -s     # prints the table of docs/reliability.md
"""

from __future__ import annotations

import re

import pytest

from tests.support.bombs import INPUTS, measured

BOUND_MIB = {"zstd": 160}
"""A zstd frame may look back over 128 MiB; what a batch may hold bounds what of it is used."""


@pytest.mark.parametrize("name", INPUTS)
def test_reading_the_worst_input_of_a_codec_stays_within_its_bound(name: str) -> None:
    line = measured(name)
    print(line)
    peak = re.search(r"peak \+(\d+) MiB", line)
    assert peak is not None
    assert int(peak[1]) < BOUND_MIB.get(name, 100)
