"""The longest videos of a size that fit."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any

import pytest

from longtake.configs.hardware import Figure
from longtake.configs.parallel import ParallelConfig
from longtake.engine.planning.advice.what_fits import what_fits
from longtake.engine.planning.plan_input import PlanInput
from longtake.engine.planning.planner import best_fitting
from tests.unit.engine.planning.test_planner import plan_input

best = partial(best_fitting, requested=ParallelConfig(), devices=1)


def of_length(planned: PlanInput, num_frames: int, **changes: Any) -> PlanInput:
    update = {"num_frames": num_frames, **changes}
    return replace(planned, request=planned.request.model_copy(update=update))


@pytest.mark.parametrize(
    ("gpu", "model", "size"),
    [
        ("rtx4090", "hunyuan-video", (720, 1280)),
        ("rtx4080", "hunyuan-video", (544, 960)),
        ("rtx4090", "wan2.2-t2v-a14b", (720, 1280)),
        ("rtx3090", "wan2.1-t2v-1.3b", (480, 832)),
    ],
)
def test_one_frame_more_than_the_longest_does_not_fit(
    gpu: str, model: str, size: tuple[int, int]
) -> None:
    planned = plan_input(gpu, model=model, height=size[0], width=size[1])
    fit = what_fits(planned, best)
    assert fit.prediction is not None and fit.longest >= planned.request.num_frames
    assert fit.request.num_frames == planned.request.num_frames
    same = replace(planned, request=fit.request)
    assert best(of_length(same, fit.longest)) is not None
    if fit.longest + planned.spec.frames_multiple <= 10 * planned.request.num_frames:
        assert best(of_length(same, fit.longest + planned.spec.frames_multiple)) is None


def test_wan_is_decoded_in_tiles_where_the_whole_video_does_not_fit() -> None:
    planned = plan_input("rtx4080", model="wan2.2-t2v-a14b")
    assert planned.request.decode == "whole" and best(planned) is None
    assert what_fits(planned, best).request.decode == "tiled"
    assert what_fits(plan_input("h200", model="wan2.2-t2v-a14b"), best).request.decode == "whole"


def test_nothing_fits_a_small_device() -> None:
    planned = plan_input("rtx4080")
    update = {"memory_bytes": Figure(value=2**30, source="of a test")}
    small = replace(planned, hardware=planned.hardware.model_copy(update=update))
    fit = what_fits(small, best)
    assert fit.prediction is None and fit.longest == 0
    assert fit.request.num_frames == planned.spec.fewest_frames
