"""The tables of docs/capacity.md, and what holds of the autoscaler's simulation."""

from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.capacity import (
    LOADS,
    MODELS,
    Scaling,
    burst,
    loads,
    need,
    reactions,
    simulate,
)

PAGE = Path(__file__).parents[2] / "docs" / "capacity.md"
PICTURES = PAGE.with_name("pictures")


def test_the_page_holds_what_the_command_prints() -> None:
    text = PAGE.read_text()
    assert loads() in text
    assert reactions() in text


def test_a_steady_load_within_one_pod_scales_nothing() -> None:
    found = simulate(Scaling(), burst(50, 50, 0, 1), 1800)
    assert found.most_replicas == 1
    assert found.worst_lag == 0


def test_a_burst_that_all_pods_carry_is_drained_and_the_wait_ends() -> None:
    found = simulate(Scaling(), burst(50, 500, 300, 600), 3600, 300)
    assert 0 < found.seconds_to_drain < 600
    assert found.most_replicas == 6


def test_a_lane_that_has_caught_up_loses_its_pods_while_the_load_lasts() -> None:
    load = burst(50, 500, 300, 3000)
    assert simulate(Scaling(), load, 3600, 300).lag_again > 10_000
    assert simulate(Scaling(min_replicas=6), load, 3600, 300).lag_again == 0


def test_a_load_above_all_pods_is_never_drained() -> None:
    assert simulate(Scaling(), burst(1000, 1000, 0, 1), 1800).seconds_to_drain == -1


def test_from_zero_something_is_started_for_a_single_record() -> None:
    found = simulate(Scaling(min_replicas=0), burst(0, 1, 100, 1), 600, 100)
    assert found.most_replicas == 1
    assert found.worst_wait_seconds <= 15 + 30 + 3 + 1


@given(st.integers(5, 120), st.integers(0, 120))
def test_a_slower_start_never_helps(start: int, more: int) -> None:
    load = burst(50, 500, 300, 300)
    quick = simulate(Scaling(start_seconds=start), load, 1500, 300)
    slow = simulate(Scaling(start_seconds=start + more), load, 1500, 300)
    assert slow.worst_lag >= quick.worst_lag


@pytest.mark.parametrize("model", MODELS, ids=lambda model: model.name)
def test_more_load_never_needs_less(model: object) -> None:
    found = [need(load, model, gpu=True) for load in LOADS]  # type: ignore[arg-type]
    for less, more in pairwise(found):
        assert (less.cores, less.gpus, less.partitions) <= (more.cores, more.gpus, more.partitions)


def test_a_model_for_gpus_alone_is_refused_on_cpus() -> None:
    with pytest.raises(ValueError, match="8B: on GPUs only"):
        need(1, MODELS[-1], gpu=False)


def test_the_picture_is_what_its_script_draws() -> None:
    scope: dict[str, object] = {"__name__": "drawing", "__file__": str(PICTURES / "x.py")}
    exec((PICTURES / "architecture.py").read_text(), scope)  # noqa: S102 - a file of this repository
    drawn = scope["drawn"]
    assert callable(drawn)
    assert (PICTURES / "architecture.svg").read_text() == drawn()
