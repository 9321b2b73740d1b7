"""Resolves requests: fills in the model's defaults, and checks them against the model."""

from __future__ import annotations

import logging
import math
import os
import secrets
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from longtake.configs.request import (
    DecodeRequest,
    Rendering,
    ResolvedDecode,
    ResolvedRequest,
    TileSize,
)
from longtake.configs.sizes import SHORTHANDS
from longtake.engine.resolve.size import resolve_num_frames, resolve_size
from longtake.errors import RequestError
from longtake.pipelines.spec import AutoencoderSpec, ModelSpec

if TYPE_CHECKING:
    from longtake.engine.media.pictures.picture import CheckedPicture

logger = logging.getLogger(__name__)

_SHORTHANDS = set(SHORTHANDS)


def resolve(
    request: Rendering, spec: ModelSpec, picture: CheckedPicture | None = None
) -> ResolvedRequest:
    """Fill in the model's defaults and a seed, and check the request against the model.

    A missing seed is drawn here, once for all ranks.

    Args:
        request: The request.
        spec: The model's specification.
        picture: The request's picture; None leaves it unchecked.

    Returns:
        The request with all fields set.

    Raises:
        RequestError: The model does not support the size, the number of frames, the noise levels
            or the picture.
    """
    defaults, guidance = spec.defaults, request.guidance_scale
    num_steps = _num_inference_steps(request) or defaults.num_inference_steps
    picture_fields = _picture_fields(request, spec, picture)
    height, width = resolve_size(request, spec, picture)
    fields: dict[str, Any] = {
        **request.model_dump(exclude=_SHORTHANDS),
        **picture_fields,
        "height": height,
        "width": width,
        "num_frames": resolve_num_frames(request, spec),
        "num_inference_steps": num_steps,
        "guidance_scale": defaults.guidance_scale if guidance is None else guidance,
        "flow_shift": _flow_shift(request, spec, picture_fields.get("i2v_mode")),
        **_decode_fields(request, spec),
        "seed": secrets.randbits(32) if request.seed is None else request.seed,
        "prompt_template": request.prompt_template or defaults.prompt_template,
        "max_sequence_length": request.max_sequence_length or defaults.max_sequence_length,
        "negative_prompt": _negative_prompt(request),
    }
    resolved = ResolvedRequest(**fields)
    for name in ("height", "width"):
        _check_multiple(name, getattr(resolved, name), spec.size_multiple, 0)
    _check_multiple("num_frames", resolved.num_frames, spec.frames_multiple, 1)
    _check_not_all_dropped(resolved.num_frames, spec)
    return resolved


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


def _flow_shift(request: Rendering, spec: ModelSpec, i2v_mode: str | None) -> float | None:
    """The requested shift, else the default of the mode or the model."""
    defaults = spec.defaults
    if i2v_mode == "dynamic":
        return request.flow_shift or defaults.dynamic_flow_shift
    return request.flow_shift or defaults.flow_shift or spec.flow_shift


def _negative_prompt(request: Rendering) -> str | None:
    """The negative prompt, empty by default with true CFG; a warning if it has no effect."""
    if request.uses_true_cfg:
        return request.negative_prompt or ""
    if request.negative_prompt:
        logger.warning(
            "negative_prompt has no effect with true_cfg_scale=%g: try 6", request.true_cfg_scale
        )
    return request.negative_prompt


def _picture_fields(
    request: Rendering, spec: ModelSpec, picture: CheckedPicture | None
) -> dict[str, Any]:
    """The fields that concern the picture; none for a text-to-video model."""
    if spec.image is None:
        for name in ("image", "image_sha256", "i2v_mode", "resize_mode"):
            if getattr(request, name) is not None:
                raise RequestError(
                    f"{name}={str(getattr(request, name))!r} with a text-to-video model: name one "
                    "of image-to-video, demo-i2v say, or leave it out"
                )
        return {}
    found = {} if picture is None else {"image_sha256": picture.sha256}
    if picture is not None and request.image is not None:
        # Not normalized: ".." after a link means the parent of its target.
        found["image"] = os.path.join(os.getcwd(), os.path.expanduser(request.image))
    return {
        **found,
        "i2v_mode": request.i2v_mode or spec.defaults.i2v_mode,
        "resize_mode": request.resize_mode or spec.defaults.resize_mode,
    }


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
    mode = request.decode or spec.defaults.decode
    size, stride = request.decode_tile_size, request.decode_tile_stride
    if mode == "whole":
        for name, value in (("decode_tile_size", size), ("decode_tile_stride", stride)):
            if value is not None:
                raise RequestError(
                    f"{name}={value} with decode=whole, which has no tiles: leave one of them out"
                )
    else:
        size, stride = _tiles(size, stride, spec.autoencoder)
    return {
        "fps": request.fps or spec.defaults.fps,
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


def _check_multiple(name: str, value: int, multiple: int, rest: int) -> None:
    """Refuse a value that is not a multiple plus ``rest``."""
    if (value - rest) % multiple == 0:
        return
    below = math.floor((value - rest) / multiple) * multiple + rest
    nearest = [str(near) for near in (below, below + multiple) if near > 0]
    more = f"{rest} more than " if rest else ""
    raise RequestError(
        f"{name}={value} must be {more}a multiple of {multiple}: try {' or '.join(nearest)}"
    )
