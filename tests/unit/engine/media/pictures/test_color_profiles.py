"""Pictures are converted to sRGB; unusable profiles are refused in one line."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image, ImageCms

from longtake.engine.media.pictures.color_profiles import MAX_PROFILE_BYTES, _matrix_profile
from longtake.engine.media.pictures.picture import read_picture
from longtake.errors import RequestError

Values = npt.NDArray[Any]
Curve = Callable[[Values], Values]

COLORS = [(200, 100, 50), (230, 180, 150), (120, 130, 140), (10, 20, 30), (0, 0, 0), (255,) * 3]
SRGB = (0.3127, 0.3290, 0.64, 0.33, 0.30, 0.60, 0.15, 0.06)
P3 = (0.3127, 0.3290, 0.68, 0.32, 0.265, 0.69, 0.15, 0.06)
BT2020 = (0.3127, 0.3290, 0.708, 0.292, 0.17, 0.797, 0.131, 0.046)
ADOBE_RGB = (0.3127, 0.3290, 0.64, 0.33, 0.21, 0.71, 0.15, 0.06)


def srgb_curve(values: Values) -> Values:
    return np.where(values <= 0.04045, values / 12.92, ((values + 0.055) / 1.055) ** 2.4)


def power(exponent: float) -> Curve:
    return lambda values: values**exponent


def to_xyz(chromaticities: tuple[float, ...]) -> Values:
    x, y = np.array(chromaticities).reshape(4, 2).T
    white, *primaries = np.stack([x / y, np.ones(4), (1 - x - y) / y], axis=1)
    columns = np.stack(primaries, axis=1)
    return np.asarray(columns * np.linalg.solve(columns, white))


def in_srgb(color: tuple[int, ...], chromaticities: tuple[float, ...], curve: Curve) -> Values:
    """By definition of both color spaces, whose white is D65."""
    light = np.linalg.solve(to_xyz(SRGB), to_xyz(chromaticities) @ curve(np.array(color) / 255))
    light = np.clip(light, 0, 1)
    values = np.where(light <= 0.0031308, 12.92 * light, 1.055 * light ** (1 / 2.4) - 0.055)
    return np.asarray(255 * values)


def png(image: Image.Image, *chunks: tuple[bytes, bytes], **options: Any) -> bytes:
    """A PNG file with these chunks after its header."""
    file = io.BytesIO()
    image.save(file, "PNG", **options)
    content = file.getvalue()
    for kind, data in reversed(chunks):
        check = struct.pack(">I", zlib.crc32(kind + data))
        content = content[:33] + struct.pack(">I", len(data)) + kind + data + check + content[33:]
    return content


def read(folder: Path, content: bytes) -> Values:
    """The color of a picture."""
    (folder / "a").write_bytes(content)
    return np.asarray(read_picture(folder / "a").pixels[4, 4], dtype=float)


def plain(color: tuple[int, ...], mode: str = "RGB") -> Image.Image:
    return Image.new(mode, (8, 8), color)


def chromaticities_of(values: tuple[float, ...]) -> bytes:
    return struct.pack(">8I", *(round(value * 100_000) for value in values))


CHUNKS: list[tuple[list[tuple[bytes, bytes]], tuple[float, ...], Curve]] = [
    ([(b"cICP", bytes([12, 13, 0, 1]))], P3, srgb_curve),
    ([(b"cICP", bytes([9, 1, 0, 1]))], BT2020, srgb_curve),
    ([(b"cICP", bytes([1, 8, 0, 1]))], SRGB, power(1.0)),
    ([(b"gAMA", struct.pack(">I", 100_000))], SRGB, power(1.0)),
    ([(b"gAMA", struct.pack(">I", 55_556))], SRGB, power(1.8)),
    ([(b"cHRM", chromaticities_of(P3))], P3, srgb_curve),
    (
        [(b"gAMA", struct.pack(">I", 45_455)), (b"cHRM", chromaticities_of(ADOBE_RGB))],
        ADOBE_RGB,
        srgb_curve,
    ),
]


@pytest.mark.parametrize(("chunks", "chromaticities", "curve"), CHUNKS)
def test_color_chunks_of_png_files(
    tmp_path: Path,
    chunks: list[tuple[bytes, bytes]],
    chromaticities: tuple[float, ...],
    curve: Curve,
) -> None:
    for color in COLORS:
        expected = in_srgb(color, chromaticities, curve)
        assert np.abs(read(tmp_path, png(plain(color), *chunks)) - expected).max() <= 1


def test_pictures_tagged_srgb_are_unchanged(tmp_path: Path) -> None:
    own = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    gamma, srgb = (b"gAMA", struct.pack(">I", 100_000)), (b"sRGB", b"\0")
    for color in COLORS:
        for content in (
            png(plain(color)),
            png(plain(color), icc_profile=own),
            png(plain(color), srgb, gamma),  # sRGB goes before gAMA
            png(plain(color), (b"gAMA", struct.pack(">I", 45_455))),
            png(plain(color), (b"cICP", bytes([1, 13, 0, 1])), gamma),
            png(plain(color), (b"cICP", bytes([2, 2, 0, 1]))),
        ):
            assert read(tmp_path, content).tolist() == list(color)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP"])
def test_embedded_profiles(tmp_path: Path, kind: str) -> None:
    options = {"quality": 100, "subsampling": 0} if kind == "JPEG" else {"lossless": True}
    profile = _matrix_profile(P3, srgb_curve)
    for color in COLORS:
        file = io.BytesIO()
        plain(color).save(file, kind, icc_profile=profile, **options)
        moved = np.abs(read(tmp_path, file.getvalue()) - in_srgb(color, P3, srgb_curve))
        assert moved.max() <= 3 if kind == "JPEG" else moved.max() <= 1


def test_profiles_of_transparent_palette_and_gray_pictures(tmp_path: Path) -> None:
    profile, color = _matrix_profile(P3, srgb_curve), (200, 100, 50)
    expected = in_srgb(color, P3, srgb_curve)
    for alpha, seen in ((255, expected), (0, np.array((255, 255, 255)))):
        image = plain((*color, alpha), "RGBA")
        assert np.abs(read(tmp_path, png(image, icc_profile=profile)) - seen).max() <= 1
    palette = plain(color).quantize(4)
    assert np.abs(read(tmp_path, png(palette, icc_profile=profile)) - expected).max() <= 1
    linear = _matrix_profile(SRGB, power(1.0))
    gray = in_srgb((100,) * 3, SRGB, power(1.0))
    for image in (plain((100,), "L"), plain((100, 255), "LA"), plain((25_700,), "I;16")):
        assert np.abs(read(tmp_path, png(image, icc_profile=linear)) - gray).max() <= 1


def test_gray_and_cmyk_profiles(tmp_path: Path) -> None:
    for image in (plain((100,), "L"), plain((100, 255), "LA"), plain((25_700,), "I;16")):
        expected = in_srgb((100,) * 3, SRGB, power(1.0))
        assert np.abs(read(tmp_path, png(image, icc_profile=gray_profile())) - expected).max() <= 1
    ink = {(0, 0, 0, 0): 255, (0, 0, 0, 255): 0, (0, 0, 0, 128): 118}  # L* 49.8
    for color, gray in ink.items():
        file = io.BytesIO()
        plain(color, "CMYK").save(file, "JPEG", quality=100, icc_profile=cmyk_profile())
        assert np.abs(read(tmp_path, file.getvalue()) - gray).max() <= 3


def test_adobe_rgb_named_in_exif_data_only(tmp_path: Path) -> None:
    exif, file = Image.Exif(), io.BytesIO()
    exif[0x8769] = {0xA005: {1: "R03"}}
    plain((200, 100, 50)).save(file, "JPEG", quality=100, subsampling=0, exif=exif)
    expected = in_srgb((200, 100, 50), ADOBE_RGB, power(563 / 256))
    assert np.abs(read(tmp_path, file.getvalue()) - expected).max() <= 3


def icc(space: bytes, pcs: bytes, kind: bytes, tags: dict[bytes, bytes]) -> bytes:
    """A profile with these tags."""
    table, data = struct.pack(">I", len(tags)), b""
    start = 132 + 12 * len(tags)
    for name, tag in tags.items():
        table += struct.pack(">4sII", name, start + len(data), len(tag))
        data += tag.ljust(-(-len(tag) // 4) * 4, b"\0")
    size = 128 + len(table) + len(data)
    header = struct.pack(">I4xI4s4s4s12x4s28x", size, 0x02400000, kind, space, pcs, b"acsp")
    return (header + struct.pack(">3i", 63190, 65536, 54061)).ljust(128, b"\0") + table + data


def gray_profile() -> bytes:
    """A linear gray profile."""
    white = struct.pack(">4s4x3i", b"XYZ ", 63190, 65536, 54061)
    curve = struct.pack(">4s4xI", b"curv", 0)
    return icc(b"GRAY", b"XYZ ", b"mntr", {b"wtpt": white, b"kTRC": curve})


def cmyk_profile() -> bytes:
    """L* falls with black from 100 to 0; other inks have no effect."""
    white = struct.pack(">4s4x3i", b"XYZ ", 63190, 65536, 54061)
    lut = struct.pack(">4s4x4B9i", b"mft1", 4, 3, 2, 0, 65536, 0, 0, 0, 65536, 0, 0, 0, 65536)
    same = bytes(range(256))
    lut += same * 4 + bytes([255, 128, 128, 0, 128, 128]) * 8 + same * 3
    return icc(b"CMYK", b"Lab ", b"prtr", {b"wtpt": white, b"A2B0": lut, b"A2B1": lut})


def damaged(profile: bytes) -> bytes:
    return profile[:60] + b"\xff" * 100 + profile[160:]


REFUSED: list[tuple[str, Callable[[], bytes]]] = [
    ("cannot be used", lambda: png(plain((1, 2, 3)), icc_profile=b"no profile")),
    ("cannot be used", lambda: png(plain((1, 2, 3)), icc_profile=damaged(gray_profile()))),
    ("is damaged", lambda: png(plain((1, 2, 3)), (b"iCCP", b"name\0\0no zlib"))),
    ("for 'GRAY', which its RGB", lambda: png(plain((1, 2, 3)), icc_profile=gray_profile())),
    ("for 'CMYK', which its L", lambda: png(plain((1,), "L"), icc_profile=cmyk_profile())),
    ("high dynamic range", lambda: png(plain((1, 2, 3)), (b"cICP", bytes([9, 16, 0, 1])))),
    ("high dynamic range", lambda: png(plain((1, 2, 3)), (b"cICP", bytes([9, 18, 0, 1])))),
    ("cICP 200/1/0/1", lambda: png(plain((1, 2, 3)), (b"cICP", bytes([200, 1, 0, 1])))),
    ("cICP 1/13/0/0", lambda: png(plain((1, 2, 3)), (b"cICP", bytes([1, 13, 0, 0])))),
    ("cannot be used", lambda: png(plain((1, 2, 3)), (b"cICP", b""))),
    ("gamma of 0", lambda: png(plain((1, 2, 3)), (b"gAMA", bytes(4)))),
    ("chromaticities", lambda: png(plain((1, 2, 3)), (b"cHRM", bytes(32)))),
    ("cannot be used", lambda: png(plain((1, 2, 3)), (b"cHRM", struct.pack(">8I", *[1] * 8)))),
]


@pytest.mark.parametrize(("text", "content"), REFUSED)
def test_unusable_profiles_are_refused(
    tmp_path: Path, text: str, content: Callable[[], bytes]
) -> None:
    with pytest.raises(RequestError) as caught:
        read(tmp_path, content())
    said = str(caught.value)
    assert text in said and "save it" in said and "\n" not in said and said.count("image=") == 1


def test_a_profile_that_is_too_large_is_refused(tmp_path: Path) -> None:
    file = io.BytesIO()
    profile = gray_profile().ljust(MAX_PROFILE_BYTES + 1, b"\0")
    plain((1, 2, 3)).save(file, "WEBP", icc_profile=profile)
    with pytest.raises(RequestError, match="a color profile of more than 8 MiB"):
        read(tmp_path, file.getvalue())


def test_damaged_profiles_never_raise_anything_else(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for image, profile in (
        (plain((1, 2, 3)), _matrix_profile(P3, srgb_curve)),
        (plain((1,), "L"), gray_profile()),
    ):
        for _ in range(50):
            changed = bytearray(profile)
            for at in rng.integers(0, min(len(profile), 400), 3):
                changed[at] = int(rng.integers(256))
            try:
                read(tmp_path, png(image, icc_profile=bytes(changed)))
            except RequestError as error:
                assert "\n" not in str(error)
