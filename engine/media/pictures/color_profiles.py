"""The color space of a picture, and its conversion to sRGB.

Pillow applies ICC profiles (ImageCms), but builds none from PNG's cICP, gAMA and cHRM chunks or
from EXIF's color space: those are built here.
"""

from __future__ import annotations

import contextlib
import io
import struct
import warnings
from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt
from PIL import ExifTags, Image, ImageCms

from longtake.errors import RequestError, one_line

MAX_PROFILE_BYTES = 8 * 2**20
"""Limit of an ICC profile; those of printing presses have 3 MiB."""

_Array = npt.NDArray[np.float64]
_Curve = Callable[[_Array], _Array]
_SRGB_CHROMATICITIES = (0.3127, 0.3290, 0.64, 0.33, 0.30, 0.60, 0.15, 0.06)
"""x and y of white, red, green and blue."""
_ADOBE_RGB_CHROMATICITIES = (0.3127, 0.3290, 0.64, 0.33, 0.21, 0.71, 0.15, 0.06)
_CHROMATICITIES = {
    1: _SRGB_CHROMATICITIES,
    5: (0.3127, 0.3290, 0.64, 0.33, 0.29, 0.60, 0.15, 0.06),
    6: (0.3127, 0.3290, 0.63, 0.34, 0.31, 0.595, 0.155, 0.07),
    7: (0.3127, 0.3290, 0.63, 0.34, 0.31, 0.595, 0.155, 0.07),
    9: (0.3127, 0.3290, 0.708, 0.292, 0.17, 0.797, 0.131, 0.046),
    11: (0.314, 0.351, 0.68, 0.32, 0.265, 0.69, 0.15, 0.06),
    12: (0.3127, 0.3290, 0.68, 0.32, 0.265, 0.69, 0.15, 0.06),
}
"""By code points of ITU-T H.273: BT.709, BT.470BG, SMPTE 170M and 240M, BT.2020, DCI-P3, P3."""
_GAMMA_OF_SRGB = 0.45455
"""gAMA of PNG files in sRGB (PNG, third edition, 11.3.2.5)."""
_UNSPECIFIED = 2
"""Code point of H.273."""
_D50 = np.array([0.9642, 1.0, 0.8249])
_BRADFORD = np.array(
    [[0.8951, 0.2664, -0.1614], [-0.7502, 1.7135, 0.0367], [0.0389, -0.0685, 1.0296]]
)
_CURVE_POINTS = 1024


class _ColorError(ValueError):
    """A color space that cannot be used. The message follows the picture's label."""


def to_srgb(image: Image.Image, content: bytes, label: str) -> Image.Image:
    """Convert a picture to sRGB. One that names no color space is assumed to be in sRGB.

    Args:
        image: The decoded picture.
        content: The file's bytes.
        label: Name of the picture in error messages.

    Returns:
        The picture itself if it is in sRGB, else a new one in RGB, or RGBA where it is transparent.

    Raises:
        RequestError: The color profile is damaged, too large or for another kind of picture, or the
            picture is in high dynamic range.
    """
    try:
        with np.errstate(all="ignore"):  # struct refuses values that are not finite
            profile = _profile_of(image, content)
        return image if profile is None else _converted(image, profile)
    except _ColorError as error:
        raise RequestError(f"{label} {error}") from error
    except (ImageCms.PyCMSError, OSError, ArithmeticError, ValueError, struct.error) as error:
        raise RequestError(
            f"{label} has a color profile that cannot be used ({one_line(error)}): save it in sRGB"
        ) from error


def _profile_of(image: Image.Image, content: bytes) -> bytes | None:
    """An ICC profile of the color space, the file's own or a built one; None for sRGB.

    Precedence is PNG's: cICP, iCCP, sRGB, gAMA with cHRM.
    """
    info = image.info
    coded = _coding_points(content)
    if coded is not None and coded[:2] != (_UNSPECIFIED, _UNSPECIFIED):
        return _coded_profile(*coded)
    if "icc_profile" in info:
        if not info["icc_profile"]:
            raise _ColorError("has a color profile that is damaged: save it in sRGB")
        return bytes(info["icc_profile"])
    if "srgb" in info:
        return None
    if "gamma" in info or "chromaticity" in info:
        gamma = info.get("gamma", _GAMMA_OF_SRGB)
        curve = _srgb_curve if abs(gamma - _GAMMA_OF_SRGB) < 0.0005 else _power(gamma)
        return _matrix_profile(info.get("chromaticity", _SRGB_CHROMATICITIES), curve)
    if _is_adobe_rgb(image):
        return _matrix_profile(_ADOBE_RGB_CHROMATICITIES, _power(256 / 563))
    return None


def _coding_points(content: bytes) -> tuple[int, int, int, int] | None:
    """Primaries, transfer, matrix and range of a PNG file's cICP chunk, which Pillow ignores."""
    offset = 8
    while content.startswith(b"\x89PNG") and offset + 12 <= len(content):
        length, kind = struct.unpack_from(">I4s", content, offset)
        if kind == b"cICP":
            primaries, transfer, matrix, full_range = struct.unpack(
                "4B", content[offset + 8 : offset + 8 + length]
            )
            return primaries, transfer, matrix, full_range
        if kind == b"IDAT":
            return None
        offset += 12 + length
    return None


def _coded_profile(primaries: int, transfer: int, matrix: int, full_range: int) -> bytes:
    if transfer in (16, 18):
        raise _ColorError("is in high dynamic range (PQ or HLG): save it in sRGB")
    curves = {4: _power(1 / 2.2), 5: _power(1 / 2.8), 8: _power(1.0)}
    curves.update(dict.fromkeys((1, 6, 13, 14, 15), _srgb_curve))  # BT.709 is displayed like sRGB
    if primaries not in _CHROMATICITIES or transfer not in curves or matrix or full_range != 1:
        code = f"{primaries}/{transfer}/{matrix}/{full_range}"
        raise _ColorError(
            f"is in a color space that is not read here (cICP {code}): save it in sRGB"
        )
    return _matrix_profile(_CHROMATICITIES[primaries], curves[transfer])


def _is_adobe_rgb(image: Image.Image) -> bool:
    """Whether EXIF data name Adobe RGB (DCF, optional color space), as cameras write it."""
    with contextlib.suppress(Exception), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about damaged EXIF data
        return str(image.getexif().get_ifd(ExifTags.IFD.Interop).get(1)).startswith("R03")
    return False


def _converted(image: Image.Image, profile: bytes) -> Image.Image:
    if len(profile) > MAX_PROFILE_BYTES:
        raise _ColorError(
            f"has a color profile of more than {MAX_PROFILE_BYTES // 2**20} MiB: save it in sRGB"
        )
    source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
    space = source.profile.xcolor_space.strip()
    transparent = image.has_transparency_data
    if space == "RGB" and image.mode != "CMYK":
        mode = "RGBA" if transparent else "RGB"
        color = image if image.mode == mode else image.convert(mode)
        if _is_srgb(source):
            return image
        return _transform(source, mode, mode).apply_in_place(color)
    if space == "GRAY" and image.mode in ("1", "L", "LA"):
        color = _transform(source, "L", "RGB").apply(image.convert("L"))
        if transparent:
            color.putalpha(image.convert("LA").getchannel("A"))
        return color
    if space == "CMYK" == image.mode:
        return _transform(source, "CMYK", "RGB").apply(image)
    raise _ColorError(
        f"has a color profile for {space!r}, which its {image.mode} values are not: save it in sRGB"
    )


def _transform(
    source: ImageCms.ImageCmsProfile, mode: str, output_mode: str
) -> ImageCms.ImageCmsTransform:
    return ImageCms.buildTransform(
        source,
        ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")),
        mode,
        output_mode,
        ImageCms.Intent.RELATIVE_COLORIMETRIC,
        ImageCms.Flags.BLACKPOINTCOMPENSATION,
    )


def _is_srgb(source: ImageCms.ImageCmsProfile) -> bool:
    """Whether a profile changes no color by more than rounding does."""
    steps = np.linspace(0, 255, 18).astype(np.uint8)
    cube = np.stack(np.meshgrid(steps, steps, steps), axis=-1).reshape(18, -1, 3)
    converted = _transform(source, "RGB", "RGB").apply(Image.fromarray(cube))
    return bool(np.abs(np.asarray(converted).astype(int) - cube).max() <= 1)


def _srgb_curve(values: _Array) -> _Array:
    return np.where(values <= 0.04045, values / 12.92, ((values + 0.055) / 1.055) ** 2.4)


def _power(gamma: float) -> _Curve:
    """The curve that decodes values encoded with an exponent."""
    if not 0.1 <= gamma <= 10:
        raise _ColorError(f"has a gamma of {gamma:g}, which must be 0.1 to 10: save it in sRGB")
    return lambda values: values ** (1 / gamma)


def _matrix_profile(chromaticities: Sequence[float], curve: _Curve) -> bytes:
    """An ICC profile (version 2.4) with these primaries, and one curve for all channels.

    Args:
        chromaticities: x and y of white, red, green and blue.
        curve: Decodes values in [0, 1] to linear light.
    """
    x, y = np.array(chromaticities, dtype=np.float64).reshape(4, 2).T
    if not (y > 0).all():
        raise _ColorError("has chromaticities (cHRM) that no color has: save it in sRGB")
    white, *primaries = np.stack([x / y, np.ones(4), (1 - x - y) / y], axis=1)
    columns = np.stack(primaries, axis=1)
    columns *= np.linalg.solve(columns, white)
    adapted = np.diag((_BRADFORD @ _D50) / (_BRADFORD @ white))
    columns = np.linalg.solve(_BRADFORD, adapted @ _BRADFORD @ columns)
    points = np.rint(curve(np.linspace(0, 1, _CURVE_POINTS)) * 65535).astype(">u2").tobytes()
    curves = struct.pack(">4s4xI", b"curv", _CURVE_POINTS) + points
    colors = [struct.pack(">4s4x", b"XYZ ") + _s15_fixed_16(column) for column in columns.T]
    tags = dict(zip((b"rXYZ", b"gXYZ", b"bXYZ"), colors, strict=True))
    tags[b"wtpt"] = struct.pack(">4s4x", b"XYZ ") + _s15_fixed_16(_D50)
    start = 128 + 4 + 12 * (len(tags) + 3)
    table, data = [], b""
    for name, tag in tags.items():
        table.append(struct.pack(">4sII", name, start + len(data), len(tag)))
        data += tag
    for name in (b"rTRC", b"gTRC", b"bTRC"):
        table.append(struct.pack(">4sII", name, start + len(data), len(curves)))
    body = struct.pack(">I", len(table)) + b"".join(table) + data + curves
    header = struct.pack(
        ">I4xI4s4s4s12x4s28x", 128 + len(body), 0x02400000, b"mntr", b"RGB ", b"XYZ ", b"acsp"
    )
    return (header + _s15_fixed_16(_D50)).ljust(128, b"\0") + body


def _s15_fixed_16(values: _Array) -> bytes:
    """Three numbers in ICC's fixed-point format."""
    return struct.pack(">3i", *(round(value * 65536) for value in values))
