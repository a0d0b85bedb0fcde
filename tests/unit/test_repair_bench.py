"""How the repair benchmark reads its options and sums up its seeds."""

from __future__ import annotations

import pytest

from ares_stream.cli.bench_repair import parse_seeds, print_repair
from ares_stream.cli.terminal import Console
from ares_stream.errors import SettingsError

pytest.importorskip("torch")

from ares_stream.lab.experiments.repair.methods import (
    FIGURES,
    METHODS,
    PUBLISHED,
    RECIPE,
    run_bench,
)
from ares_stream.lab.experiments.seeds import over_seeds


def test_seeds_are_numbers_and_none_is_counted_twice() -> None:
    assert parse_seeds("11,12, 13") == [11, 12, 13]
    for text in ("", "11;12", "-1", "11,11"):
        with pytest.raises(SettingsError, match="seeds"):
            parse_seeds(text)
    with pytest.raises(SettingsError, match="none twice"):
        run_bench([11, 11])


def test_every_method_shares_one_recipe_and_the_tables_show_each_of_them(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert RECIPE.threads == 1
    row = {name: over_seeds({11: 0.125}) for name in FIGURES}
    part = {**row, "never_probed": row}
    found = {
        "seeds": [11],
        "methods": {method: {**part, "after_rlhf": part} for method in METHODS},
        "published": PUBLISHED,
    }
    print_repair(found, Console(width=160))
    text = capsys.readouterr().out
    assert text.count("two_stage") == 4
    assert "4.7% → 12.5%" in text
    assert "0.08 → 0.12" in text
