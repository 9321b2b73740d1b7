"""Whether a layout fits in memory, and what would where none does."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from longtake.configs.parallel import ParallelConfig
from longtake.engine.planning.layouts import candidates
from longtake.engine.planning.prediction import Setting, memory_in
from longtake.parallel import ParallelDims

_OTHER_COUNTS = (2, 4, 8, 16, 32, 64, 128)


def misfit(setting: Setting, dims: ParallelDims, *, shard_weights: bool) -> str | None:
    """Why a layout does not fit; None if it does, or if the memory is not known."""
    limit = setting.hardware.memory_bytes
    if limit is None:
        return None
    memory = memory_in(setting, dims, shard_weights=shard_weights)
    there, needed, each = limit.value, float(memory.total), "a rank"
    if setting.hardware.device == "cpu":  # the ranks of a host share its memory
        ranks = min(dims.world_size, setting.hardware.devices_per_node)
        needed, each = needed + (ranks - 1) * memory.other_ranks, "a host"
    if needed <= there:
        return None
    return (
        f"needs {needed / 2**30:.1f} GiB {each} and there are {there / 2**30:.1f}: "
        f"{(needed - there) / 2**30:.1f} too much"
    )


def way_out(setting: Setting, asked: ParallelConfig, devices: int, choices: list[bool]) -> str:
    """The first change with which the request would fit, the least one first.

    Args:
        choices: whether weights may be split, as it was asked for.
    """
    if devices > 1 and True not in choices and _fits(setting, asked, devices, [True]):
        return "try --shard-weights"
    for words, changes in _lesser(setting):
        changed = replace(setting, request=setting.request.model_copy(update=changes))
        if _fits(changed, asked, devices, choices):
            return f"try {words}"
    for count, split in _other_counts(setting, devices):
        if _fits(setting, ParallelConfig(), count, [split]):
            return f"try devices={count}{' with --shard-weights' if split else ''}"
    for words, changes in _smaller(setting):
        changed = replace(setting, request=setting.request.model_copy(update=changes))
        if _fits(changed, asked, devices, choices):
            return f"try {words}"
    return "nothing that is asked of this model fits: try devices with more memory"


def _fits(setting: Setting, asked: ParallelConfig, devices: int, choices: list[bool]) -> bool:
    """Whether any layout does."""
    found = candidates(
        asked,
        devices,
        num_heads=setting.spec.num_heads,
        true_cfg=setting.request.uses_true_cfg,
    )
    return any(
        misfit(setting, dims, shard_weights=split) is None for dims in found for split in choices
    )


def _other_counts(setting: Setting, devices: int) -> Iterator[tuple[int, bool]]:
    """More GPUs, with whole weights and with split ones; fewer ranks where they share a host."""
    if setting.hardware.device == "cpu":
        yield from ((devices // 2**halved, False) for halved in range(1, devices.bit_length()))
        return
    for count in _OTHER_COUNTS:
        if count > devices:
            yield from ((count, split) for split in (False, True))


def _lesser(setting: Setting) -> Iterator[tuple[str, dict[str, Any]]]:
    """The same video with less at one time: in tiles, or fewer videos together."""
    request, autoencoder = setting.request, setting.spec.autoencoder
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


def _smaller(setting: Setting) -> Iterator[tuple[str, dict[str, Any]]]:
    """Fewer frames, down to one; then smaller ones."""
    spec, request = setting.spec, setting.request
    frames, size = spec.frames_multiple, spec.size_multiple
    count = (request.num_frames - 1) // frames
    while count > 0:
        count //= 2
        yield f"--num-frames {frames * count + 1}", {"num_frames": frames * count + 1}
    height, width = request.height, request.width
    while max(height, width) > size:
        height, width = (max(size, length // 2 // size * size) for length in (height, width))
        changes = {"num_frames": 1, "height": height, "width": width}
        yield f"--num-frames 1 --height {height} --width {width}", changes
