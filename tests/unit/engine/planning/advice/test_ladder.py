"""All ways to run a request, in order, with what they lose."""

from __future__ import annotations

from dataclasses import replace

import pytest

from longtake.configs.parallel import ParallelConfig
from longtake.engine.planning.advice.ladder import LOSSES, ladder
from longtake.engine.planning.memory import out_of_memory_reason
from longtake.errors import RequestError
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
        assert rung.loss == (
            "exact" if rung.storage is None or rung.storage == "gguf" else LOSSES[rung.storage]
        )
        if rung.storage is None:
            best = rung.prediction
            assert rung.shortage == out_of_memory_reason(planned, best.dims, best.placement)


def test_a_16_gb_card_renders_exactly_at_full_speed() -> None:
    first, *others = ladder(plan_input("rtx4080"), ANY, 1)
    assert (first.name, first.loss, first.shortage) == ("1x1x1 +streamed", "exact", None)
    whole = next(rung for rung in others if rung.name == "1x1x1")
    assert whole.shortage is not None and "GiB a rank and there are 15.7" in whole.shortage
    assert first.prediction.step.seconds < 1.01 * whole.prediction.step.seconds


def test_blocks_of_a_gguf_file_are_exact_and_take_what_the_file_takes() -> None:
    """A file of 0.5625 bytes a value: the planner has one way more, before those that lose."""
    whole = plan_input("rtx4080")
    blocks = replace(whole, spec=replace(whole.spec, gguf_value_bytes=0.5625))
    rungs = ladder(blocks, ANY, 1)
    (kept,) = (rung for rung in rungs if rung.storage == "gguf")
    assert kept.loss == "exact" and kept.shortage is None
    assert all(rung.loss == "exact" for rung in rungs[: rungs.index(kept)])
    assert not any(rung.storage == "gguf" for rung in ladder(whole, ANY, 1))
    stored = replace(blocks, storage_dtype="gguf")
    linear = sum(rows * columns for rows, columns in blocks.costs.linear_shapes)
    saved = whole.transformer_bytes() - stored.transformer_bytes()
    assert saved == pytest.approx(linear * (2 - 0.5625), rel=1e-6)
    assert stored.file_element_size == 0.5625 and whole.file_element_size == 2


def test_blocks_need_a_gguf_file() -> None:
    with pytest.raises(RequestError, match="storage_dtype=gguf: not every transformer of"):
        replace(plan_input("rtx4080"), storage_dtype="gguf")
