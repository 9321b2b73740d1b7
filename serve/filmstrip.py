"""A video's first, middle and last frame side by side, for a contact sheet."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
from PIL import Image

from longtake.engine.files import write_whole
from longtake.engine.frame_writers import Array
from longtake.engine.worker import Sink

_HEIGHT_PX = 120


class Filmstrip:
    """A sink that hands all on to another, and keeps small copies of three frames.

    Args:
        sink: that takes it.
        num_frames: of each video.
    """

    def __init__(self, sink: Sink, num_frames: int) -> None:
        self._sink = sink
        self._wanted = {0, num_frames // 2, num_frames - 1}
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

    def save(self, path: Path, partial: Path) -> None:
        """Write them as a JPEG; nothing where there were no frames.

        Args:
            partial: where it stands until it is whole.
        """
        pictures = [self._pictures[index] for index in sorted(self._pictures)]
        if not pictures:
            path.unlink(missing_ok=True)
            return
        strip = Image.new("RGB", (sum(each.width for each in pictures), _HEIGHT_PX))
        at = 0
        for picture in pictures:
            strip.paste(picture, (at, 0))
            at += picture.width
        content = io.BytesIO()
        strip.save(content, "JPEG", quality=85)
        write_whole(path, content.getvalue(), partial=partial)
