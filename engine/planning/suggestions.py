"""Suggests the smallest change with which a request fits in memory."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

from longtake.configs.parallel import ParallelConfig
from longtake.engine.planning.layouts import candidate_layouts
from longtake.engine.planning.memory import out_of_memory_reason
from longtake.engine.planning.plan_input import PlanInput

_DEVICE_COUNTS = (2, 4, 8, 16, 32, 64, 128)


def suggest(
    plan_input: PlanInput, requested: ParallelConfig, devices: int, shard_choices: Sequence[bool]
) -> str:
    """The first change with which the request would fit, the smallest change first.

    Args:
        plan_input: The model, the request and the hardware.
        requested: The requested degrees.
        devices: Number of ranks.
        shard_choices: The allowed values of ``shard_weights``.
    """
    if devices > 1 and True not in shard_choices and _fits(plan_input, requested, devices, [True]):
        return "try --shard-weights"
    for flags, update in _less_at_once(plan_input):
        if _fits(_changed(plan_input, update), requested, devices, shard_choices):
            return f"try {flags}"
    for count, shard in _other_device_counts(plan_input, devices):
        if _fits(plan_input, ParallelConfig(), count, [shard]):
            return f"try devices={count}{' with --shard-weights' if shard else ''}"
    for flags, update in _smaller_videos(plan_input):
        if _fits(_changed(plan_input, update), requested, devices, shard_choices):
            return f"try {flags}"
    return "no smaller request to this model fits: try devices with more memory"


def _changed(plan_input: PlanInput, update: dict[str, Any]) -> PlanInput:
    return replace(plan_input, request=plan_input.request.model_copy(update=update))


def _fits(
    plan_input: PlanInput, requested: ParallelConfig, devices: int, shard_choices: Sequence[bool]
) -> bool:
    """Whether any layout fits."""
    layouts = candidate_layouts(
        requested,
        devices,
        num_heads=plan_input.spec.num_heads,
        num_passes=plan_input.num_passes,
    )
    return any(
        out_of_memory_reason(plan_input, dims, shard_weights=shard) is None
        for dims in layouts
        for shard in shard_choices
    )


def _other_device_counts(plan_input: PlanInput, devices: int) -> Iterator[tuple[int, bool]]:
    """Device counts and ``shard_weights``: more GPUs, or fewer ranks where they share a host."""
    if plan_input.hardware.device == "cpu":
        yield from ((devices // 2**halved, False) for halved in range(1, devices.bit_length()))
        return
    for count in _DEVICE_COUNTS:
        if count > devices:
            yield from ((count, shard) for shard in (False, True))


def _less_at_once(plan_input: PlanInput) -> Iterator[tuple[str, dict[str, Any]]]:
    """Flags and request updates: the same video decoded in tiles, or fewer videos together."""
    request, autoencoder = plan_input.request, plan_input.spec.autoencoder
    if request.decode != "tiled":
        tiles = {
            "decode": "tiled",
            "decode_tile_size": autoencoder.tile_size,
            "decode_tile_stride": autoencoder.tile_stride,
        }
        yield "--decode tiled", tiles
    count = request.num_videos
    while count > 1:
        count //= 2
        yield f"--num-videos {count}", {"num_videos": count}


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
