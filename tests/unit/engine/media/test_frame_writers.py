"""Videos show the colors of their frames, and the same frames give the same file."""

from __future__ import annotations

import os
import random
import struct
from pathlib import Path
from typing import Any

import av
import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image

from longtake.configs.engine import EngineConfig
from longtake.engine.media.paths import OutputTarget
from longtake.engine.media.video_writer import VideoFiles
from tests.encodes import dirty_heap, encoded, moving_frames
from tests.rendering import request

COLORS = np.array(
    [(255, 0, 0), (0, 255, 0), (0, 0, 255), (230, 180, 150), (90, 56, 37), (255, 255, 0)]
    + [(0, 255, 255), (255, 0, 255), (255, 255, 255), (128, 128, 128), (0, 0, 0)]
)
# Y, Cb and Cr of BT.709 in limited range to R, G and B, by ITU-R BT.709-6.
TO_RGB = np.array([[1, 0, 1.5748], [1, -0.187324, -0.468124], [1, 1.8556, 0]])


def bars(height: int, width: int) -> npt.NDArray[np.float32]:
    """A vertical bar of each color, in two frames."""
    columns = COLORS[np.arange(width) * len(COLORS) // width] / 255
    return np.broadcast_to(columns, (2, height, width, 3)).astype(np.float32)


def displayed(path: Path, height: int, width: int) -> npt.NDArray[Any]:
    """The bars' colors in the first frame, as a player that reads the tags shows them."""
    with av.open(path) as container:
        frame = next(container.decode(video=0))
    assert (frame.width, frame.height) == (width, height)
    assert (frame.colorspace, frame.color_primaries, frame.color_trc) == (1, 1, 1)
    assert frame.color_range == 1
    middles = (np.arange(len(COLORS)) * 2 + 1) * width // (2 * len(COLORS))
    values = []
    for plane in frame.planes:
        rows = np.frombuffer(plane, np.uint8).reshape(plane.height, plane.line_size)
        values.append(rows[plane.height // 2, middles * plane.width // width].astype(float))
    yuv = (np.stack(values, axis=1) - [16, 128, 128]) / [219, 224, 224]
    return np.asarray(np.clip(yuv @ TO_RGB.T * 255, 0, 255))


@pytest.mark.parametrize("suffix", [".mp4", ".webm"])
@pytest.mark.parametrize("size", [(720, 1280), (48, 352), (97, 707)], ids=str)
def test_colors_are_bt709_and_tagged(tmp_path: Path, suffix: str, size: tuple[int, int]) -> None:
    path = tmp_path / f"out{suffix}"
    content = encoded(path, bars(*size))
    assert np.abs(displayed(path, *size) - COLORS).max() <= 3
    if suffix == ".mp4":
        assert b"colrnclx" + struct.pack(">HHHB", 1, 1, 1, 0) in content
    else:  # matrix, range, transfer and primaries, an element of one byte each
        for number in (0xB1, 0xB9, 0xBA, 0xBB):
            assert bytes([0x55, number, 0x81, 1]) in content


def test_frames_in_png_files_are_tagged_srgb(tmp_path: Path) -> None:
    with VideoFiles(OutputTarget(tmp_path / "out"), request(num_frames=1), EngineConfig()) as files:
        files.frame(0, 0, bars(32, 48)[0])
        files.publish({})
    with Image.open(tmp_path / "out" / "00000.png") as image:
        assert image.info["srgb"] == 0


@pytest.mark.parametrize("size", [(16, 16), (19, 23), (47, 65), (90, 150), (96, 160)], ids=str)
def test_uninitialized_memory_does_not_change_the_file(
    tmp_path: Path, size: tuple[int, int]
) -> None:
    rng, frames = random.Random(0), moving_frames(17, *size)
    for suffix, times in ((".mp4", 8), (".webm", 3)):
        found = set()
        for _ in range(times):
            dirty_heap(rng)
            found.add(encoded(tmp_path / f"out{suffix}", frames))
        assert len(found) == 1


@pytest.mark.parametrize("suffix", [".mp4", ".webm"])
def test_the_number_of_cores_does_not_change_the_file(tmp_path: Path, suffix: str) -> None:
    frames, cores = moving_frames(9, 256, 320), os.sched_getaffinity(0)
    of_all = encoded(tmp_path / f"out{suffix}", frames)
    os.sched_setaffinity(0, {min(cores)})
    try:
        assert encoded(tmp_path / f"out{suffix}", frames) == of_all
    finally:
        os.sched_setaffinity(0, cores)


def boxes(content: bytes) -> list[str]:
    """The names of an .mp4 file's top-level boxes."""
    names, at = [], 0
    while at < len(content):
        size, name = struct.unpack_from(">I4s", content, at)
        names.append(name.decode())
        at += size
    return names


@pytest.mark.parametrize("num_frames", [1, 9, 600])
def test_an_mp4_file_begins_with_its_index(tmp_path: Path, num_frames: int) -> None:
    rng = np.random.default_rng(0)
    frames = rng.random((num_frames, 16, 16, 3), dtype=np.float32)
    found = boxes(encoded(tmp_path / "out.mp4", frames))
    assert found[:2] == ["ftyp", "moov"] and found[-1] == "mdat"
    assert set(found[2:-1]) == {"free"}


@pytest.mark.parametrize("fps", [23.976, 24000 / 1001, 29.97, 0.1, 12.5, 1000, 999.99])
def test_rates_are_exact(tmp_path: Path, fps: float) -> None:
    encoded(tmp_path / "out.mp4", bars(16, 22), fps)
    with av.open(tmp_path / "out.mp4") as container:
        assert float(container.streams.video[0].average_rate or 0) == fps
