"""The forecast benchmark: its candidates are what they say; its summary counts what was seen."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from ares_stream.audit.forecast import error_of
from ares_stream.detection.intervals import wilson
from ares_stream.errors import SettingsError
from ares_stream.lab.experiments.forecast import run_bench, scaled, summary
from tests.support.adapters import write_adapter
from tests.support.forecasts import place


@pytest.mark.torch
@pytest.mark.parametrize("share", [-1.0, 0.0, 0.25, 1.0])
def test_a_scaled_adapter_changes_its_model_by_that_share(tmp_path: Path, share: float) -> None:
    from safetensors.torch import load_file

    def change(folder: Path) -> Any:
        tensors = load_file(str(folder / "adapter_model.safetensors"))
        down, up = (
            next(v for k, v in tensors.items() if side in k) for side in ("lora_A", "lora_B")
        )
        return up @ down

    whole = write_adapter(tmp_path / "whole")
    part = scaled(whole, tmp_path / "part", share)
    assert (change(part) - share * change(whole)).abs().max() < 1e-7
    assert (part / "adapter_config.json").read_bytes() == (
        whole / "adapter_config.json"
    ).read_bytes()


def test_a_summary_counts_directions_and_tells_what_lies_below_the_floor() -> None:
    rows = [
        {
            "errors": [
                error_of("", "cfr", place({"cfr": before}, {"cfr": said}), wilson(came, 1000)),
                error_of("topic=a", "cfr", place({"cfr": 9}, {"cfr": 9}), wilson(9, 1000)),
            ]
        }
        for before, said, came in ((100, 20, 25), (100, 120, 25), (100, 0, 0), (100, 90, 95))
    ]
    whole = summary(rows, "cfr", sliced=False)
    assert (whole["figures"], whole["above_floor"], whole["moved"]) == (4, 3, 3)
    assert whole["direction_right"]["value"] == pytest.approx(2 / 3)
    assert whole["largest_factor"] == pytest.approx(4.8)
    assert whole["median_factor"] == pytest.approx((95 / 90 + 1.25) / 2)
    assert whole["median_factor_above_floor"] == pytest.approx(1.25)
    assert summary(rows, "cfr", sliced=True)["moved"] == 0


@pytest.mark.parametrize("seeds", [[], [7, 7]])
def test_no_seeds_and_doubled_ones_are_refused(seeds: list[int]) -> None:
    with pytest.raises(SettingsError, match="seeds"):
        run_bench(seeds)
