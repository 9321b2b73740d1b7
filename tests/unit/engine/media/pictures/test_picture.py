"""Pictures of every kind are read as they look; other files are refused in one line."""

from __future__ import annotations

import io
import os
import re
import struct
import subprocess
import sys
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from longtake.engine.media.pictures import picture
from longtake.engine.media.pictures.picture import MAX_BYTES, decode_picture, read_picture
from longtake.engine.media.pictures.process import MAX_PIXELS
from longtake.errors import RequestError
from longtake.pipelines.codec.picture import Pixels, picture_to_video, resize_picture

RED, GREEN, BLUE, WHITE, BLACK = (
    (255, 0, 0),
    (0, 255, 0),
    (0, 0, 255),
    (255, 255, 255),
    (0, 0, 0),
)


def quarters(height: int = 16, width: int = 32) -> Image.Image:
    """Red and green above blue and white."""
    pixels = np.zeros((height, width, 3), dtype=np.uint8)
    pixels[: height // 2, : width // 2], pixels[: height // 2, width // 2 :] = RED, GREEN
    pixels[height // 2 :, : width // 2], pixels[height // 2 :, width // 2 :] = BLUE, WHITE
    return Image.fromarray(pixels)


def save(path: Path, image: Image.Image, **options: Any) -> Path:
    image.save(path, **options)
    return path


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("a.png", {}),
        ("a.jpg", dict(quality=95, subsampling=0)),
        ("progressive.jpeg", dict(quality=95, subsampling=0, progressive=True)),
        ("a.webp", dict(lossless=True)),
        ("a name without a suffix", dict(format="PNG")),
        ("wrong.jpg", dict(format="PNG")),
    ],
)
def test_every_format_is_read(tmp_path: Path, name: str, options: dict[str, Any]) -> None:
    read = read_picture(save(tmp_path / name, quarters(), **options))
    assert read.size == (16, 32) and read.pixels.dtype == np.uint8
    assert np.abs(read.pixels.astype(int) - np.asarray(quarters())).max() <= 3


@pytest.mark.parametrize(
    ("mode", "expected"),
    [("L", (76, 150, 29, 255)), ("1", None), ("P", None), ("CMYK", None), ("I;16", None)],
)
def test_every_mode_is_read(tmp_path: Path, mode: str, expected: Any) -> None:
    image = quarters().convert("L" if mode == "I;16" else mode)
    if mode == "I;16":  # 65535 is white
        image = Image.fromarray(np.asarray(image).astype(np.uint16) * 257)
        expected = (76, 150, 29, 255)
    suffix = ".jpg" if mode == "CMYK" else ".png"
    pixels = read_picture(save(tmp_path / f"a{suffix}", image)).pixels
    assert pixels.shape == (16, 32, 3)
    corners = [tuple(pixels[y, x].tolist()) for y, x in ((2, 2), (2, -3), (-3, 2), (-3, -3))]
    if expected is not None:
        assert corners == [(gray, gray, gray) for gray in expected]
    if mode in ("P", "CMYK"):
        assert np.abs(np.array(corners) - [RED, GREEN, BLUE, WHITE]).max() < 8


@pytest.mark.parametrize("name", ["a.png", "a.webp"])
def test_transparent_pixels_become_white(tmp_path: Path, name: str) -> None:
    image = quarters().convert("RGBA")
    image.putalpha(Image.fromarray(np.tile(np.array([0, 255], np.uint8).repeat(16), (16, 1))))
    pixels = read_picture(save(tmp_path / name, image, lossless=True)).pixels
    assert (pixels[:, :16] == 255).all()
    np.testing.assert_allclose(pixels[:8, 16:], np.broadcast_to(GREEN, (8, 16, 3)), atol=3)


def test_sixteen_bits_with_a_transparent_gray(tmp_path: Path) -> None:
    gray = Image.fromarray(np.array([[1000, 30_000]], dtype=np.uint16))
    path = save(tmp_path / "a.png", gray, transparency=1000)
    assert read_picture(path).pixels[0, :, 0].tolist() == [255, 117]


def test_a_palette_with_a_transparent_color(tmp_path: Path) -> None:
    image = Image.new("P", (2, 1))
    image.putpalette([255, 0, 0, 0, 0, 255])
    image.putpixel((1, 0), 1)
    pixels = read_picture(save(tmp_path / "a.png", image, transparency=0)).pixels
    assert pixels.tolist() == [[list(WHITE), list(BLUE)]]


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("name", ["a.jpg", "a.png", "a.webp"])
def test_exif_orientation_is_applied(tmp_path: Path, name: str, orientation: int) -> None:
    """A picture that is stored as cameras do is read upright."""
    stored = {
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_90,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_270,
    }
    image = quarters()
    if orientation in stored:
        image = image.transpose(stored[orientation])
    exif = Image.Exif()
    exif[0x0112] = orientation
    options: dict[str, Any] = dict(quality=95, subsampling=0) if name == "a.jpg" else {}
    options |= dict(lossless=True) if name == "a.webp" else {}
    read = read_picture(save(tmp_path / name, image, exif=exif, **options))
    assert read.size == (16, 32)
    assert np.abs(read.pixels.astype(int) - np.asarray(quarters())).max() <= 3


def test_damaged_exif_data_are_ignored(tmp_path: Path) -> None:
    exif = b"Exif\x00\x00II*\x00" + bytes([8, 0, 0, 0, 255, 255]) + b"\xff" * 40
    path = save(tmp_path / "a.jpg", quarters(), exif=exif, quality=95, subsampling=0)
    assert read_picture(path).size == (16, 32)


@pytest.mark.parametrize("size", [(1, 1), (1, 4000), (4000, 1), (40, 6000)], ids=str)
def test_extreme_shapes_are_read(tmp_path: Path, size: tuple[int, int]) -> None:
    height, width = size
    path = save(tmp_path / "a.png", Image.new("RGB", (width, height), RED))
    assert read_picture(path).size == size


def test_the_first_frame_of_an_animation_is_read(tmp_path: Path) -> None:
    frames = [Image.new("RGB", (8, 8), color) for color in (RED, BLUE)]
    for name in ("a.webp", "a.png"):
        path = tmp_path / name
        frames[0].save(path, save_all=True, append_images=frames[1:], lossless=True)
        assert (read_picture(path).pixels == RED).all()


# Refusals.


def refusal_of(path: Path, folder: Path | None = None) -> str:
    with pytest.raises(RequestError) as caught:
        read_picture(path, folder)
    message = str(caught.value)
    assert "\n" not in message and message.startswith(f"image={str(path)!r} ")
    assert message.count("image=") == 1
    return message


def png(width: int, height: int) -> bytes:
    """A PNG file with this size in its header, and hardly any data."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        checked = kind + data
        return struct.pack(">I", len(data)) + checked + struct.pack(">I", zlib.crc32(checked))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(b"\0" * 1000))
        + chunk(b"IEND", b"")
    )


def webp(width: int, height: int) -> bytes:
    """The same as a WebP file."""
    canvas = struct.pack("<I", width - 1)[:3] + struct.pack("<I", height - 1)[:3]
    body = b"WEBPVP8X" + struct.pack("<I", 10) + b"\0\0\0\0" + canvas
    small = io.BytesIO()
    quarters().save(small, "WEBP")
    body += small.getvalue()[12:]
    return b"RIFF" + struct.pack("<I", len(body)) + body


def test_other_files_are_refused(tmp_path: Path) -> None:
    contents = {
        "text.png": b"not a picture",
        "empty.png": b"",
        "page.html": b"<html>",
        "code.jpg": b"\x7fELF" + bytes(100),
        "vector.svg": b"<svg xmlns='http://www.w3.org/2000/svg'/>",
    }
    for name, content in contents.items():
        (tmp_path / name).write_bytes(content)
        assert "is no picture in PNG, JPEG or WebP" in refusal_of(tmp_path / name)
    quarters().save(tmp_path / "other.bmp")
    quarters().save(tmp_path / "other.gif")
    quarters().save(tmp_path / "other.tiff")
    for name in ("other.bmp", "other.gif", "other.tiff"):
        assert "convert it" in refusal_of(tmp_path / name)


@pytest.mark.parametrize("name", ["a.png", "a.jpg", "a.webp"])
def test_truncated_files_are_refused(tmp_path: Path, name: str) -> None:
    """Wherever they end, unless no pixel is missing."""
    noise = np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8)
    whole = save(tmp_path / name, Image.fromarray(noise)).read_bytes()
    for length in range(0, len(whole) - 64, max(1, len(whole) // 60)):
        with pytest.raises(RequestError, match="^It (is damaged or incomplete|is no picture)"):
            decode_picture(whole[:length], "It")
    (tmp_path / "cut").write_bytes(whole[: len(whole) // 2])
    assert "is damaged or incomplete" in refusal_of(tmp_path / "cut")


@pytest.mark.parametrize("name", ["a.png", "a.jpg", "a.webp"])
def test_damaged_bytes_never_raise_anything_else(tmp_path: Path, name: str) -> None:
    rng = np.random.default_rng(1)
    whole = bytearray(save(tmp_path / name, quarters()).read_bytes())
    for _ in range(200):
        changed = bytearray(whole)
        for at in rng.integers(0, len(whole), 3):
            changed[at] = int(rng.integers(256))
        try:
            assert decode_picture(bytes(changed), "It").shape[2] == 3
        except RequestError as error:
            assert "\n" not in str(error)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("large.png", png(6400, 6400)),
        ("bomb.png", png(30_000, 30_000)),
        ("huge.png", png(2**31 - 1, 2**31 - 1)),
        ("large.webp", webp(16_000, 16_000)),
    ],
)
def test_too_many_pixels_are_refused(tmp_path: Path, name: str, content: bytes) -> None:
    (tmp_path / name).write_bytes(content)
    assert re.search("40 million (pixels, which )?are the most", refusal_of(tmp_path / name))


def test_too_many_bytes_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    with path.open("wb") as file:
        file.truncate(MAX_BYTES + 1)
    assert "has more than 64 MiB" in refusal_of(path)


def test_paths_that_are_not_files_are_refused(tmp_path: Path) -> None:
    assert "No such file or directory" in refusal_of(tmp_path / "nothing.png")
    assert "is not a file" in refusal_of(tmp_path)
    os.mkfifo(tmp_path / "pipe.png")
    assert "is not a file" in refusal_of(tmp_path / "pipe.png")
    assert "is not a file" in refusal_of(Path("/dev/zero"))
    assert "cannot be read" in refusal_of(Path("a\0b"))
    assert "cannot be read" in refusal_of(tmp_path / ("x" * 5000))


def test_pictures_outside_the_folder_are_refused(tmp_path: Path) -> None:
    inside, outside = tmp_path / "in", tmp_path / "in side"  # one name begins with the other
    for folder in (inside, outside):
        folder.mkdir()
        save(folder / "a.png", quarters())
    (inside / "deep").mkdir()
    save(inside / "deep" / "a.png", quarters())
    os.symlink(outside / "a.png", inside / "link.png")
    os.symlink(outside, inside / "way")
    os.symlink(inside / "a.png", outside / "back.png")
    for path in (inside / "a.png", inside / "deep" / "a.png", outside / "back.png"):
        assert read_picture(path, inside).size == (16, 32)
    for path in (
        outside / "a.png",
        inside / "link.png",
        inside / "way" / "a.png",
        inside / ".." / "in side" / "a.png",
        Path("/etc/passwd"),
    ):
        assert "is outside" in refusal_of(path, inside)


def test_another_digest_is_refused(tmp_path: Path) -> None:
    path = save(tmp_path / "a.png", quarters())
    sha256 = read_picture(path).sha256
    assert read_picture(path, sha256=sha256).sha256 == sha256
    save(path, quarters(32, 32))
    with pytest.raises(RequestError, match="is not the expected picture"):
        read_picture(path, sha256=sha256)
    with pytest.raises(RequestError, match="is no picture"):  # discloses nothing about other files
        read_picture(Path(__file__), sha256=sha256)


_READING = """
import resource, sys
from pathlib import Path
from longtake.engine.media.pictures.picture import read_picture
from longtake.engine.memory_use import resident_bytes
from longtake.errors import RequestError

for path in map(Path, sys.argv[1:]):
    before = resident_bytes()
    try:
        message = str(read_picture(path).size)
    except RequestError as error:
        message = str(error)
    most = 1024 * resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
    print(path.name, most, resident_bytes() - before, message, sep="|")
"""


def test_reading_stays_within_its_memory_limits(tmp_path: Path) -> None:
    """The largest pictures, rotated, progressive or transparent, and decompression bombs. All
    memory is released."""
    height, width = 5000, 8000
    assert height * width == MAX_PIXELS
    slope = np.linspace(0, 255, width, dtype=np.uint8)[None, :, None]
    image = Image.fromarray(np.broadcast_to(slope, (height, width, 3)).copy())
    exif = Image.Exif()
    exif[0x0112] = 6
    save(tmp_path / "a.jpg", image, exif=exif, progressive=True)
    gray = Image.fromarray(np.full((height, width), 30_000, dtype=np.uint16))
    save(tmp_path / "gray.png", gray, compress_level=1)
    image.putalpha(128)
    save(tmp_path / "a.png", image, exif=exif, compress_level=1)
    flat = Image.new("RGBA", (width, height), (255, 0, 0, 128))
    save(tmp_path / "flat.webp", flat, lossless=True, quality=0, method=0)
    save(tmp_path / "turned.webp", flat, exif=exif, lossless=True, quality=0, method=0)
    others = sorted(tmp_path.iterdir())
    bombs = [tmp_path / "bomb.png", tmp_path / "bomb.webp"]
    for path, content in zip(bombs, (png(20_000, 20_000), webp(16_000, 16_000)), strict=True):
        path.write_bytes(content)
    command = [sys.executable, "-c", _READING, *map(str, [*bombs, *others])]
    ran = subprocess.run(command, capture_output=True, text=True, check=True)
    lines = [line.split("|") for line in ran.stdout.splitlines()]
    assert len(lines) == 7
    for name, most, kept, message in lines:
        print(name, message, f"{int(most) / 2**20:.0f} MiB")
        assert message.startswith("(") != name.startswith("bomb")
        # the peak of all children so far, and at least that of the process that started them
        assert int(most) < (2**29 if name.startswith("bomb") else 2**30)
        assert int(kept) < 2**25


# Resizing.


def test_crop_pad_and_stretch() -> None:
    """A 2:1 picture whose outer quarters are black, into a square."""
    wide = np.full((40, 80, 3), 255, dtype=np.uint8)
    wide[:, :20] = wide[:, 60:] = 0
    assert (resize_picture(wide, 40, 40, "crop") == 255).all()
    assert (resize_picture(wide, 20, 20, "crop") > 230).all()
    padded = resize_picture(wide, 80, 80, "pad")
    assert (padded[:19] == 0).all() and (padded[61:] == 0).all()
    assert (padded[22:58, 22:58] == 255).all() and (padded[22:58, :18] == 0).all()
    stretched = resize_picture(wide, 40, 40, "stretch")
    assert stretched[:, :8].max() <= 2 and stretched[:, 13:27].min() >= 250


@pytest.mark.parametrize("mode", ["crop", "pad", "stretch"])
@pytest.mark.parametrize("size", [(1, 1), (1, 4000), (4000, 1), (33, 47)], ids=str)
def test_every_shape_fits_every_size(mode: Any, size: tuple[int, int]) -> None:
    pixels: Pixels = np.full((*size, 3), 200, dtype=np.uint8)
    out = resize_picture(pixels, 48, 80, mode)
    assert out.shape == (48, 80, 3)
    assert out.max() == 200
    assert (out == 200).all() or mode == "pad"


@pytest.mark.parametrize("mode", ["crop", "pad", "stretch"])
def test_the_same_size_changes_nothing(mode: Any) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (32, 48, 3), dtype=np.uint8)
    np.testing.assert_array_equal(resize_picture(pixels, 32, 48, mode), pixels)


def test_a_picture_as_a_video() -> None:
    import torch

    pixels = torch.tensor([[[0, 51, 255], [255, 0, 0]]], dtype=torch.uint8)
    video = picture_to_video(pixels)
    assert video.shape == (1, 3, 1, 1, 2)
    torch.testing.assert_close(video[0, :, 0, 0, 0], torch.tensor([-1.0, -0.6, 1.0]))


def test_pictures_of_noise_have_the_size_of_the_video_and_differ() -> None:
    from tests.rendering import request

    assert picture.noise_pictures(request(), ()) == {}
    found = picture.noise_pictures(request(), ("image", "last_image"))
    assert [each.shape for each in found.values()] == [(32, 48, 3)] * 2
    assert all(each.std() > 60 for each in found.values())
    assert (found["image"] != found["last_image"]).any()
