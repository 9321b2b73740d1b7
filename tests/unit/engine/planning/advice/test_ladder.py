"""All ways to run a request, in order, with what they lose."""

from __future__ import annotations

import pytest

from longtake.configs.parallel import ParallelConfig
from longtake.engine.planning.advice.ladder import LOSSES, ladder
from longtake.engine.planning.memory import out_of_memory_reason
from tests.unit.engine.planning.test_planner import plan_input

ANY = ParallelConfig()


@pytest.mark.parametrize(("gpu", "devices"), [("rtx4080", 1), ("rtx4090", 4), ("h100", 8)])
def test_what_fits_comes_first_and_what_is_exact_before_what_is_not(gpu: str, devices: int) -> None:
    planned = plan_input(gpu)
    rungs = ladder(planned, ANY, devices)
    assert len(rungs) == (3 if devices == 1 else 4) + len(LOSSES)
    assert len({rung.name for rung in rungs}) == len(rungs)
    order = [(rung.shortage is not None, rung.storage is not None) for rung in rungs]
    assert order == sorted(order)
    for rung in rungs:
        assert rung.prediction.dims.world_size == devices
        assert rung.loss == ("exact" if rung.storage is None else LOSSES[rung.storage])
        if rung.storage is None:
            best = rung.prediction
            assert rung.shortage == out_of_memory_reason(planned, best.dims, best.placement)


def test_a_16_gb_card_renders_exactly_at_full_speed() -> None:
    first, *others = ladder(plan_input("rtx4080"), ANY, 1)
    assert (first.name, first.loss, first.shortage) == ("1x1x1 +streamed", "exact", None)
    whole = next(rung for rung in others if rung.name == "1x1x1")
    assert whole.shortage is not None and "GiB a rank and there are 15.7" in whole.shortage
    assert first.prediction.step.seconds < 1.01 * whole.prediction.step.seconds
