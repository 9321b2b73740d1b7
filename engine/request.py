"""From what was asked for to a request with nothing left out."""

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
from longtake.engine.request_size import frames_of, size_of
from longtake.errors import RequestError
from longtake.pipelines.spec import AutoencoderSpec, ModelSpec

if TYPE_CHECKING:
    from longtake.engine.media.picture import CheckedPicture

logger = logging.getLogger(__name__)

_SHORTHANDS = set(SHORTHANDS)


def resolve(
    request: Rendering, spec: ModelSpec, picture: CheckedPicture | None = None
) -> ResolvedRequest:
    """Fill in the model's defaults and a seed, and check the request against the model.

    A missing seed is drawn here, once for all ranks.

    Args:
        picture: the one that the request names; without it, nothing is said of one that is missing.

    Raises:
        RequestError: a size, a number of frames or the noise levels that the model cannot have.
    """
    defaults, guidance = spec.defaults, request.guidance_scale
    steps = request.num_inference_steps
    if request.sigmas is not None:
        steps = len(request.sigmas) if steps is None else steps
        if steps != len(request.sigmas):
            raise RequestError(
                f"num_inference_steps={steps} with {len(request.sigmas)} sigmas: there must be one "
                "sigma a step; leave num_inference_steps out"
            )
    of_image = _image_fields(request, spec, picture)
    shift = request.flow_shift or defaults.flow_shift or spec.flow_shift
    if of_image.get("i2v_mode") == "dynamic":
        shift = request.flow_shift or defaults.dynamic_flow_shift
    height, width = size_of(request, spec, picture)
    filled: dict[str, Any] = {
        "height": height,
        "width": width,
        **of_image,
        "num_frames": frames_of(request, spec),
        "num_inference_steps": steps or defaults.num_inference_steps,
        "guidance_scale": defaults.guidance_scale if guidance is None else guidance,
        "flow_shift": shift,
        **_decoding(request, spec),
        "seed": secrets.randbits(32) if request.seed is None else request.seed,
        "prompt_template": request.prompt_template or defaults.prompt_template,
        "max_sequence_length": request.max_sequence_length or defaults.max_sequence_length,
    }
    if request.uses_true_cfg and request.negative_prompt is None:
        filled["negative_prompt"] = ""
    if request.negative_prompt and not request.uses_true_cfg:
        logger.warning(
            "negative_prompt has no effect with true_cfg_scale=%g: try 6",
            request.true_cfg_scale,
        )
    resolved = ResolvedRequest(**{**request.model_dump(exclude=_SHORTHANDS), **filled})
    for name in ("height", "width"):
        _check_multiple(name, getattr(resolved, name), spec.size_multiple, 0)
    _check_multiple("num_frames", resolved.num_frames, spec.frames_multiple, 1)
    _check_some_left(resolved.num_frames, spec)
    return resolved


def _image_fields(
    request: Rendering, spec: ModelSpec, picture: CheckedPicture | None
) -> dict[str, Any]:
    """The fields that say how a picture is taken; of a text-to-video model there are none."""
    if spec.image is None:
        for name in ("image", "image_sha256", "i2v_mode", "resize_mode"):
            if getattr(request, name) is not None:
                raise RequestError(
                    f"{name}={str(getattr(request, name))!r} with a text-to-video model: name one "
                    "of image-to-video, demo-i2v say, or leave it out"
                )
        return {}
    named = {} if picture is None else {"image_sha256": picture.sha256}
    if picture is not None and request.image is not None:
        # Not normalized: ".." behind a link leads elsewhere.
        named["image"] = os.path.join(os.getcwd(), os.path.expanduser(request.image))
    return {
        **named,
        "i2v_mode": request.i2v_mode or spec.defaults.i2v_mode,
        "resize_mode": request.resize_mode or spec.defaults.resize_mode,
    }


def _check_some_left(num_frames: int, spec: ModelSpec) -> None:
    """Refuse a video of which nothing is left, of a model that drops its first frames."""
    dropped = spec.dropped_frames
    if num_frames <= dropped:
        raise RequestError(
            f"num_frames={num_frames} with a model that drops the first {dropped}: try "
            f"{dropped + 1} or more"
        )


def resolve_decode(
    request: DecodeRequest, latents_shape: Sequence[int], spec: ModelSpec
) -> ResolvedDecode:
    """How some latents become a video: with the model's defaults filled in, and checked.

    Args:
        latents_shape: B, C, F, H, W.

    Raises:
        RequestError: latents of another model, or tiles that it cannot have.
    """
    num_videos, channels, *size = latents_shape
    autoencoder = spec.autoencoder
    if channels != autoencoder.latent_channels:
        raise RequestError(
            f"latents of {channels} channels: this model's have {autoencoder.latent_channels}; "
            "name the model that made them"
        )
    num_frames, height, width = autoencoder.video_size(*size)
    filled = _decoding(request, spec)
    _check_some_left(num_frames, spec)
    try:
        return ResolvedDecode(
            **filled, num_videos=num_videos, num_frames=num_frames, height=height, width=width
        )
    except RequestError as error:
        raise RequestError(f"latents of no video: {error}") from error


def _decoding(request: DecodeRequest, spec: ModelSpec) -> dict[str, Any]:
    """The fields of a DecodeRequest, none left out but a whole video's tiles."""
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
    """Size and stride, whichever were asked for; multiples of what one latent is worth."""
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
                f"{name}={_words(values)} must be multiples of {_words(ratios)} (frames, height, "
                f"width): try {_words(autoencoder.tile_size)}"
            )
    if any(far > long for far, long in zip(stride, size, strict=True)):
        raise RequestError(
            f"decode_tile_stride={_words(stride)} must be at most decode_tile_size={_words(size)}: "
            "else something between two tiles is in neither; leave the stride out"
        )
    return size, stride


def _words(values: Sequence[int]) -> str:
    return " ".join(map(str, values))


def _check_multiple(name: str, value: int, multiple: int, rest: int) -> None:
    """Refuse a value that is not ``rest`` more than a multiple."""
    if (value - rest) % multiple == 0:
        return
    below = math.floor((value - rest) / multiple) * multiple + rest
    nearest = [str(near) for near in (below, below + multiple) if near > 0]
    more = f"{rest} more than " if rest else ""
    raise RequestError(
        f"{name}={value} must be {more}a multiple of {multiple}: try {' or '.join(nearest)}"
    )
