"""Sizes and lengths of videos that fit on some devices, and what they take."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

from longtake.configs.field_types import MAX_FRAMES
from longtake.configs.request import ResolvedRequest
from longtake.engine.planning.advice.suggestions import tiles_of
from longtake.engine.planning.plan_input import PlanInput
from longtake.engine.planning.prediction import Prediction
from longtake.pipelines.spec import ModelSpec

RESOLUTIONS = ("720p", "544p", "480p", "320p")
"""Shorter sides of the frames that are tried, beside a model's default size."""

_MOST_FRAMES = 10
"""Longest video that is tried, over the length of the model's default."""

Predict = Callable[[PlanInput], Prediction | None]


@dataclass(frozen=True)
class Fit:
    """Videos of one size.

    Attributes:
        request: The longest request that fits, up to the model's default length; the shortest of
            all if none fits.
        prediction: What it takes; None if it does not fit.
        longest: Most frames that fit, up to ten times the model's default; 0 if none fits.
        default: The model's default number of frames.
    """

    request: ResolvedRequest
    prediction: Prediction | None
    longest: int
    default: int


def what_fits(planned: PlanInput, best_fitting: Predict) -> Fit:
    """The longest videos of a size that fit, decoded in tiles if the default length asks for them.

    Args:
        planned: A request of this size and of the model's default length.
        best_fitting: Predicts the best layout of a request; None if none fits.
    """
    found = _longest(planned, best_fitting)
    if found.longest >= planned.request.num_frames or planned.request.decode == "tiled":
        return found
    tiles = planned.request.model_copy(update=tiles_of(planned.spec))
    tiled = _longest(replace(planned, request=tiles), best_fitting)
    return tiled if tiled.longest > found.longest else found


def _longest(planned: PlanInput, best_fitting: Predict) -> Fit:
    """The longest videos of a request's size and kind of decoding that fit."""
    default = planned.request.num_frames
    counts = list(_frame_counts(planned.spec, _MOST_FRAMES * default))

    def predicted(num_frames: int) -> Prediction | None:
        return best_fitting(replace(planned, request=_of_length(planned.request, num_frames)))

    fewest, most = -1, len(counts)  # the former fits, the latter does not
    while most - fewest > 1:
        middle = (fewest + most) // 2
        if predicted(counts[middle]) is None:
            most = middle
        else:
            fewest = middle
    longest = counts[fewest] if fewest >= 0 else 0
    shown = min(default, longest) or counts[0]
    return Fit(_of_length(planned.request, shown), predicted(shown), longest, default)


def _of_length(request: ResolvedRequest, num_frames: int) -> ResolvedRequest:
    return request.model_copy(update={"num_frames": num_frames})


def _frame_counts(spec: ModelSpec, most: int) -> Iterator[int]:
    """Numbers of frames that a model renders."""
    yield from range(spec.fewest_frames, min(most, MAX_FRAMES) + 1, spec.frames_multiple)
