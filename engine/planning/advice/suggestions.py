"""Suggests the smallest change with which a request fits in memory."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from longtake.configs.parallel import ParallelConfig
from longtake.engine.planning.memory import place_text
from longtake.engine.planning.plan_input import PlanInput
from longtake.engine.planning.weights.places import Places
from longtake.pipelines.spec import ModelSpec

_DEVICE_COUNTS = (2, 4, 8, 16, 32, 64, 128)


def suggest(plan_input: PlanInput, requested: ParallelConfig, devices: int, places: Places) -> str:
    """The first change with which the request would fit, the smallest change first.

    Args:
        plan_input: The model, the request and the hardware.
        requested: The requested degrees.
        devices: Number of ranks.
        places: The allowed places of weights.
    """
    for flags, other in _other_places(places, devices):
        if _fits(plan_input, requested, devices, other):
            return f"try {flags}"
    for flags, update in _less_at_once(plan_input):
        if _fits(_changed(plan_input, update), requested, devices, places):
            return f"try {flags}"
    fewer_bits = replace(plan_input, storage_dtype="int8")
    if plan_input.storage_dtype is None and _fits(fewer_bits, requested, devices, places):
        return "try --storage-dtype int8, which loses quality"
    for count in _other_device_counts(plan_input, devices):
        if _fits(plan_input, ParallelConfig(), count, places.on(count)):
            return f"try devices={count}"
    for flags, update in _smaller_videos(plan_input):
        if _fits(_changed(plan_input, update), requested, devices, places):
            return f"try {flags}"
    return "no smaller request to this model fits: try devices with more memory"


def _changed(plan_input: PlanInput, update: dict[str, Any]) -> PlanInput:
    return replace(plan_input, request=plan_input.request.model_copy(update=update))


def _fits(plan_input: PlanInput, requested: ParallelConfig, devices: int, places: Places) -> bool:
    """Whether any layout fits."""
    layouts = plan_input.layouts(requested, devices)
    return any(
        place_text(plan_input, dims, weights, places.text)[1] is None
        for dims in layouts
        for weights in places.weights
    )


def _other_places(places: Places, devices: int) -> Iterator[tuple[str, Places]]:
    """Flags and places: one place is free that was not, then both."""
    free = Places().on(devices)
    for weights in free.weights:
        if weights not in places.weights:
            yield f"--weights {weights}", replace(places, weights=(weights,))
    for text in free.text:
        if text not in places.text:
            yield f"--text-weights {text}", replace(places, text=(text,))
    if set(free.weights) - set(places.weights) and set(free.text) - set(places.text):
        yield "--weights auto --text-weights auto", free


def _other_device_counts(plan_input: PlanInput, devices: int) -> Iterator[int]:
    """More GPUs, or fewer ranks where they share a host's memory."""
    if plan_input.hardware.device == "cpu":
        yield from (devices // 2**halved for halved in range(1, devices.bit_length()))
        return
    yield from (count for count in _DEVICE_COUNTS if count > devices)


def _less_at_once(plan_input: PlanInput) -> Iterator[tuple[str, dict[str, Any]]]:
    """Flags and request updates: the same video decoded in tiles, or fewer videos together."""
    if plan_input.request.decode != "tiled":
        yield "--decode tiled", tiles_of(plan_input.spec)
    count = plan_input.request.num_videos
    while count > 1:
        count //= 2
        yield f"--num-videos {count}", {"num_videos": count}


def tiles_of(spec: ModelSpec) -> dict[str, Any]:
    """The update of a request that decodes it in the model's tiles."""
    return {
        "decode": "tiled",
        "decode_tile_size": spec.autoencoder.tile_size,
        "decode_tile_stride": spec.autoencoder.tile_stride,
    }


def _smaller_videos(plan_input: PlanInput) -> Iterator[tuple[str, dict[str, Any]]]:
    """Flags and request updates: fewer frames, down to the fewest; then smaller frames."""
    spec, request = plan_input.spec, plan_input.request
    multiple, size, fewest = spec.frames_multiple, spec.size_multiple, spec.fewest_frames
    count = (request.num_frames - fewest) // multiple
    while count > 0:
        count //= 2
        frames = multiple * count + fewest
        yield f"--num-frames {frames}", {"num_frames": frames}
    height, width = request.height, request.width
    while max(height, width) > size:
        height, width = (max(size, length // 2 // size * size) for length in (height, width))
        update = {"num_frames": fewest, "height": height, "width": width}
        yield f"--num-frames {fewest} --height {height} --width {width}", update
