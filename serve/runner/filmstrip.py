"""Small copies of some frames of a video side by side, as they are decoded."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image

from longtake.engine.arrays import Array
from longtake.engine.sinks import Sink
from longtake.files.atomic import write_atomically

_HEIGHT_PX = 120


class Filmstrip:
    """A sink that hands all on to another, and keeps small copies of the first frame, the last, and
    some between them.

    Args:
        sink: that takes it.
        num_frames: of each video.
        show: is told of each copy, with a JPEG of those that there are.
        count: of copies, at most.
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
        self._wanted = {round(at * (num_frames - 1) / (count - 1)) for at in range(count)}
        self._pictures: dict[int, Image.Image] = {}

    def latents(self, latents: Array) -> None:
        """Hand them on."""
        self._sink.latents(latents)

    def frame(self, video: int, index: int, frame: Array) -> None:
        """Hand it on."""
        self._sink.frame(video, index, frame)
        if video == 0 and index in self._wanted:
            values = np.rint(np.clip(frame, 0, 1) * 255).astype(np.uint8)
            height, width = values.shape[:2]
            size = max(1, round(width * _HEIGHT_PX / height)), _HEIGHT_PX
            self._pictures[index] = Image.fromarray(values).resize(size)
            self._show(self._jpeg())

    def save(self, path: Path, partial: Path) -> None:
        """Write them as a JPEG; nothing where there were no frames.

        Args:
            partial: where it stands until it is whole.
        """
        if self._pictures:
            write_atomically(path, self._jpeg(), partial=partial)
        else:
            path.unlink(missing_ok=True)

    def _jpeg(self) -> bytes:
        pictures = [self._pictures[index] for index in sorted(self._pictures)]
        strip = Image.new("RGB", (sum(each.width for each in pictures), _HEIGHT_PX))
        at = 0
        for picture in pictures:
            strip.paste(picture, (at, 0))
            at += picture.width
        content = io.BytesIO()
        strip.save(content, "JPEG", quality=85)
        return content.getvalue()


def middle_frame(strip: bytes, shape: float) -> bytes:
    """The middle one of the frames of a strip.

    Args:
        strip: a JPEG.
        shape: width over height of a frame.
    """
    with Image.open(io.BytesIO(strip), formats=("JPEG",)) as picture:
        width = max(1, round(shape * picture.height))
        count = max(1, round(picture.width / width))
        left = width * (count // 2)
        content = io.BytesIO()
        picture.crop((left, 0, left + width, picture.height)).save(content, "JPEG", quality=85)
    return content.getvalue()
