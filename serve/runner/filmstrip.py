"""Filmstrips: thumbnails of some frames side by side, made while the video is decoded."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image

from longtake.engine.media.arrays import Array
from longtake.engine.media.sinks import Sink
from longtake.files.atomic import write_atomically

_HEIGHT_PX = 120


class Filmstrip:
    """A sink that forwards to another sink and keeps thumbnails of evenly spaced frames.

    Args:
        sink: The sink to forward to.
        num_frames: Number of frames of each video.
        show: Called after each new thumbnail with a JPEG of those so far.
        count: Maximum number of thumbnails, including the first and the last frame.
    """

    def __init__(
        self,
        sink: Sink,
        num_frames: int,
        show: Callable[[bytes], None] = lambda picture: None,
        count: int = 3,
    ) -> None:
        self._sink = sink
        self._show = show
        self._selected = {round(n * (num_frames - 1) / (count - 1)) for n in range(count)}
        self._pictures: dict[int, Image.Image] = {}

    def latents(self, latents: Array) -> None:
        """Forward the latents."""
        self._sink.latents(latents)

    def frame(self, video: int, index: int, frame: Array) -> None:
        """Forward a frame, and keep a thumbnail of it if it is one of the selected frames."""
        self._sink.frame(video, index, frame)
        if video == 0 and index in self._selected:
            values = np.rint(np.clip(frame, 0, 1) * 255).astype(np.uint8)
            height, width = values.shape[:2]
            size = max(1, round(width * _HEIGHT_PX / height)), _HEIGHT_PX
            self._pictures[index] = Image.fromarray(values).resize(size)
            self._show(self._jpeg())

    def save(self, path: Path, partial: Path) -> None:
        """Write the thumbnails as a JPEG. Without thumbnails, an earlier file is removed.

        Args:
            path: Path of the JPEG.
            partial: Path of the file until it is complete.
        """
        if self._pictures:
            write_atomically(path, self._jpeg(), partial=partial)
        else:
            path.unlink(missing_ok=True)

    def _jpeg(self) -> bytes:
        pictures = [self._pictures[index] for index in sorted(self._pictures)]
        strip = Image.new("RGB", (sum(each.width for each in pictures), _HEIGHT_PX))
        left = 0
        for picture in pictures:
            strip.paste(picture, (left, 0))
            left += picture.width
        content = io.BytesIO()
        strip.save(content, "JPEG", quality=85)
        return content.getvalue()


def middle_frame(strip: bytes, aspect_ratio: float) -> bytes:
    """The middle thumbnail of a filmstrip, as a JPEG.

    Args:
        strip: The filmstrip, a JPEG.
        aspect_ratio: Width divided by height of a frame.
    """
    with Image.open(io.BytesIO(strip), formats=("JPEG",)) as picture:
        width = max(1, round(aspect_ratio * picture.height))
        count = max(1, round(picture.width / width))
        left = width * (count // 2)
        content = io.BytesIO()
        picture.crop((left, 0, left + width, picture.height)).save(content, "JPEG", quality=85)
    return content.getvalue()
