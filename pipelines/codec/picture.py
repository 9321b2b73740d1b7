"""Resizes a picture to the size of a video and converts it to autoencoder input.

Legend: H W pixels.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps

from longtake.configs.field_types import ResizeMode

if TYPE_CHECKING:
    import torch

Pixels = npt.NDArray[np.uint8]
"""RGB pixels, ``[H, W, 3]``."""

_BLACK = (0, 0, 0)


def resize_picture(picture: Pixels, height: int, width: int, mode: ResizeMode) -> Pixels:
    """Resize a picture with a Lanczos filter.

    Args:
        picture: The picture, ``[H, W, 3]``.
        height: Height of the result in pixels.
        width: Width of the result in pixels.
        mode: ``crop`` center-crops to the target aspect ratio, ``pad`` adds black bars, and
            ``stretch`` changes the aspect ratio.
    """
    image, size = Image.fromarray(picture), (width, height)
    if mode == "crop":
        image = ImageOps.fit(image, size, Image.Resampling.LANCZOS)
    elif mode == "stretch":
        image = image.resize(size, Image.Resampling.LANCZOS)
    else:
        scale = min(width / image.width, height / image.height)
        inner = [max(1, round(scale * side)) for side in image.size]
        small = image.resize((inner[0], inner[1]), Image.Resampling.LANCZOS)
        image = Image.new("RGB", size, _BLACK)
        image.paste(small, ((width - inner[0]) // 2, (height - inner[1]) // 2))
    return np.array(image)


def picture_to_video(picture: torch.Tensor) -> torch.Tensor:
    """``[H, W, 3]`` in 0..255 to a one-frame video ``[1, 3, 1, H, W]`` in [-1, 1], float32."""
    return (picture.permute(2, 0, 1)[None, :, None].float() / 255) * 2 - 1


def black_picture(height: int, width: int) -> Pixels:
    """A black picture."""
    return np.zeros((height, width, 3), dtype=np.uint8)
