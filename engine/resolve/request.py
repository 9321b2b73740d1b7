"""Resolves requests: fills in the model's defaults, and checks them against the model."""

from __future__ import annotations

import os
import secrets
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from longtake.configs.field_types import Sigmas, TileSize
from longtake.configs.fields.few_step import FewStep
from longtake.configs.fields.sizes import SHORTHANDS
from longtake.configs.request import (
    PICTURES,
    DecodeRequest,
    MergedOptions,
    Rendering,
    ResolvedDecode,
    ResolvedRequest,
    VideoRequest,
)
from longtake.engine.resolve.few_step import with_few_step
from longtake.engine.resolve.size import resolve_num_frames, resolve_size
from longtake.errors import RequestError
from longtake.pipelines.spec import AutoencoderSpec, ModelSpec

if TYPE_CHECKING:
    from longtake.engine.media.pictures.picture import CheckedPicture

_SHORTHANDS = set(SHORTHANDS)
_UNCHECKED: Mapping[str, CheckedPicture] = {}


def resolve(
    request: Rendering,
    spec: ModelSpec,
    pictures: Mapping[str, CheckedPicture] = _UNCHECKED,
    few_step: FewStep | None = None,
) -> ResolvedRequest:
    """Fill in the model's defaults and a seed, and check the request against the model.

    A missing seed is drawn here, once for all ranks.

    Args:
        request: The request.
        spec: The model's specification.
        pictures: The request's pictures by field; those left out stay unchecked.
        few_step: Settings that the files of weights and LoRAs name; None if they name none.

    Returns:
        The request with all fields set.

    Raises:
        RequestError: The model does not support the size, the number of frames, the noise levels,
            an option or a picture, or has no such few-step preset.
    """
    check_taken(request, spec)
    request = with_few_step(request, spec, few_step)
    defaults = spec.defaults
    height, width = resolve_size(request, spec, next(iter(pictures.values()), None))
    sigmas, num_steps = _steps(request, spec)
    fields: dict[str, Any] = {
        **request.model_dump(exclude=_SHORTHANDS),
        **_picture_fields(request, spec, pictures),
        "height": height,
        "width": width,
        "num_frames": resolve_num_frames(request, spec),
        "num_inference_steps": num_steps,
        "sigmas": sigmas,
        **_decode_fields(request, spec),
        "seed": secrets.randbits(32) if request.seed is None else request.seed,
        "max_sequence_length": request.max_sequence_length or defaults.max_sequence_length,
        **spec.resolve_fields(request),
    }
    resolved = ResolvedRequest(**fields)
    for name in ("height", "width"):
        _check_multiple(name, getattr(resolved, name), spec.size_multiple, 0)
    _check_multiple("num_frames", resolved.num_frames, spec.frames_multiple, spec.fewest_frames)
    _check_not_all_dropped(resolved.num_frames, spec)
    _check_ends(resolved)
    return resolved


def resolve_sizes(
    values: Mapping[str, Any], spec: ModelSpec, resolutions: Sequence[str]
) -> list[ResolvedRequest]:
    """Requests of a model's default size, and of those resolutions that are smaller.

    Args:
        values: Fields of the requests, without a size.
        spec: The model's specification.
        resolutions: The resolutions, such as "480p".

    Raises:
        RequestError: As :func:`resolve`.
    """
    given = {"prompt": "any", **values}
    default = resolve(VideoRequest(**given), spec)
    smaller = [resolve(VideoRequest(**given, resolution=each), spec) for each in resolutions]
    pixels = default.height * default.width
    return [default, *(each for each in smaller if each.height * each.width < pixels)]


def check_taken(request: Rendering, spec: ModelSpec) -> None:
    """Refuse options of other families, and pictures, that the model does not take.

    Raises:
        RequestError: The request gives one of them.
    """
    whose = f"{spec.model} ({spec.family})" if spec.family else spec.model or "this model"
    for name in MergedOptions.model_fields:
        if name not in spec.options.model_fields and getattr(request, name) is not None:
            value = getattr(request, name)
            raise RequestError(f"{name}={value} is not an option of {whose}: leave it out")
    foreign = [name for name in PICTURES if name not in spec.pictures]
    fields = [each for name in foreign for each in (name, f"{name}_sha256")]
    for name in fields if spec.pictures else [*fields, "resize_mode"]:
        if getattr(request, name) is not None:
            raise RequestError(
                f"{name}={str(getattr(request, name))!r} with a model that takes "
                f"{' and '.join(spec.pictures) or 'no picture'}: leave it out, or name a model "
                "that takes it"
            )


def _steps(request: Rendering, spec: ModelSpec) -> tuple[Sigmas | None, int]:
    """Noise levels, None for the scheduler's own, and the number of steps.

    The model's default levels are those of its default number of steps.
    """
    steps = _num_inference_steps(request)
    if steps is not None:
        return request.sigmas, steps
    defaults = spec.defaults
    sigmas = defaults.sigmas
    return sigmas, defaults.num_inference_steps if sigmas is None else len(sigmas)


def _num_inference_steps(request: Rendering) -> int | None:
    """The requested number of steps, or that of the requested sigmas."""
    steps, sigmas = request.num_inference_steps, request.sigmas
    if sigmas is None:
        return steps
    if steps not in (None, len(sigmas)):
        raise RequestError(
            f"num_inference_steps={steps} with {len(sigmas)} sigmas: there must be one "
            "sigma a step; leave num_inference_steps out"
        )
    return len(sigmas)


def _picture_fields(
    request: Rendering, spec: ModelSpec, pictures: Mapping[str, CheckedPicture]
) -> dict[str, Any]:
    """The fields that concern pictures; none for a model that takes no picture."""
    if not spec.pictures:
        return {}
    fields: dict[str, Any] = {f"{name}_sha256": each.sha256 for name, each in pictures.items()}
    for name in pictures:
        if (path := getattr(request, name)) is not None:
            # Not normalized: ".." after a link means the parent of its target.
            fields[name] = os.path.join(os.getcwd(), os.path.expanduser(path))
    return {**fields, "resize_mode": request.resize_mode or spec.defaults.resize_mode}


def _check_ends(resolved: ResolvedRequest) -> None:
    """Refuse a single frame that is both the first picture and the last."""
    if resolved.num_frames == 1 and resolved.gives("image") and resolved.gives("last_image"):
        raise RequestError(
            "num_frames=1 with image and last_image: a frame is one of them; leave one out, or ask "
            "for more frames"
        )


def _check_not_all_dropped(num_frames: int, spec: ModelSpec) -> None:
    """Refuse a video that has no more frames than the model drops at its start."""
    dropped = spec.dropped_frames
    if num_frames <= dropped:
        raise RequestError(
            f"num_frames={num_frames} with a model that drops the first {dropped}: try "
            f"{dropped + 1} or more"
        )


def resolve_decode(
    request: DecodeRequest, latents_shape: Sequence[int], spec: ModelSpec
) -> ResolvedDecode:
    """Fill in the model's defaults for decoding, and check latents against the model.

    Args:
        request: The decoding options.
        latents_shape: B, C, F, H, W.
        spec: The model's specification.

    Raises:
        RequestError: The latents are another model's, or the model does not support the tiles.
    """
    num_videos, channels, *size = latents_shape
    autoencoder = spec.autoencoder
    if channels != autoencoder.latent_channels:
        raise RequestError(
            f"latents of {channels} channels: this model's have {autoencoder.latent_channels}; "
            "name the model that made them"
        )
    num_frames, height, width = autoencoder.video_size(*size)
    values = _decode_fields(request, spec)
    _check_not_all_dropped(num_frames, spec)
    try:
        return ResolvedDecode(
            **values, num_videos=num_videos, num_frames=num_frames, height=height, width=width
        )
    except RequestError as error:
        raise RequestError(f"latents of no possible video: {error}") from error


def _decode_fields(request: DecodeRequest, spec: ModelSpec) -> dict[str, Any]:
    """The fields of a DecodeRequest; the tile fields are None for decode=whole."""
    defaults = spec.defaults
    mode = request.decode or defaults.decode
    if mode == "framewise" and not spec.tiles_time:
        raise RequestError(
            f"decode=framewise with {spec.family or 'this model'}, whose autoencoder decodes all "
            "frames of a tile: use whole or tiled"
        )
    size, stride = request.decode_tile_size, request.decode_tile_stride
    if mode == "whole":
        for name, value in (("decode_tile_size", size), ("decode_tile_stride", stride)):
            if value is not None:
                raise RequestError(
                    f"{name}={value} with decode=whole, which has no tiles: leave one of them out"
                )
    else:
        if size is None and stride is None:
            size, stride = defaults.decode_tile_size, defaults.decode_tile_stride
        size, stride = _tiles(size, stride, spec.autoencoder)
    return {
        "fps": request.fps or defaults.fps,
        "decode": mode,
        "decode_tile_size": size,
        "decode_tile_stride": stride,
    }


def _tiles(
    size: TileSize | None, stride: TileSize | None, autoencoder: AutoencoderSpec
) -> tuple[TileSize, TileSize]:
    """Tile size and stride, the missing ones filled in, checked to be multiples of a latent's size
    in pixels and frames."""
    ratios = autoencoder.ratios
    if stride is None and size is None:
        stride = autoencoder.tile_stride
    size = size or autoencoder.tile_size
    if stride is None:
        quarters = [3 * each // 4 // ratio for each, ratio in zip(size, ratios, strict=True)]
        frames, height, width = (
            ratio * max(1, count) for count, ratio in zip(quarters, ratios, strict=True)
        )
        stride = frames, height, width
    for name, values in (("decode_tile_size", size), ("decode_tile_stride", stride)):
        if any(value % ratio for value, ratio in zip(values, ratios, strict=True)):
            raise RequestError(
                f"{name}={_joined(values)} must be multiples of {_joined(ratios)} (frames, height, "
                f"width): try {_joined(autoencoder.tile_size)}"
            )
    if any(step > extent for step, extent in zip(stride, size, strict=True)):
        raise RequestError(
            f"decode_tile_stride={_joined(stride)} must be at most "
            f"decode_tile_size={_joined(size)}: else something between "
            "two tiles is in neither; leave the stride out"
        )
    return size, stride


def _joined(values: Sequence[int]) -> str:
    return " ".join(map(str, values))


def _check_multiple(name: str, value: int, multiple: int, first: int) -> None:
    """Refuse a value that is not ``first`` plus a multiple."""
    if value >= first and (value - first) % multiple == 0:
        return
    below = max(first, (value - first) // multiple * multiple + first)
    nearest = [str(near) for near in (below, below + multiple) if near > 0]
    more = f"{first % multiple} more than " if first % multiple else ""
    raise RequestError(
        f"{name}={value} must be {more}a multiple of {multiple}: try {' or '.join(nearest)}"
    )
