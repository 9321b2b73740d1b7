"""Input pictures, read from untrusted files."""

from __future__ import annotations

import hashlib
import io
import logging
import os
import stat
import warnings
from collections import OrderedDict
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from longtake.engine.media.pictures.color_profiles import to_srgb
from longtake.engine.media.pictures.process import MAX_CPU_S, MAX_PIXELS, decode_in_subprocess
from longtake.errors import RequestError, one_line
from longtake.files.atomic import cause

if TYPE_CHECKING:  # a decoder process starts for each picture, and imports as little as possible
    from longtake.configs.request import ResolvedRequest
    from longtake.pipelines.codec.picture import Pixels

logger = logging.getLogger(__name__)

FORMATS = ("PNG", "JPEG", "WEBP")
MAX_BYTES = 64 * 2**20
"""Size limit of a picture file."""
_MAX_CACHED_SIZES = 4096

_WHITE = (255, 255, 255)

_sizes: OrderedDict[str, tuple[int, int]] = OrderedDict()
"""Height and width of pictures decoded earlier, by SHA-256; see :func:`check_picture`."""


@dataclass(frozen=True)
class CheckedPicture:
    """Facts about a picture that can be decoded.

    Attributes:
        size: Height and width of the upright picture.
        sha256: Hexadecimal digest of the file.
    """

    size: tuple[int, int]
    sha256: str


@dataclass(frozen=True)
class Picture:
    """An upright picture in sRGB.

    Attributes:
        pixels: ``[H, W, 3]``, uint8.
        sha256: Hexadecimal digest of the file.
    """

    pixels: Pixels
    sha256: str

    @property
    def size(self) -> tuple[int, int]:
        """Height and width."""
        height, width, _ = self.pixels.shape
        return height, width


def read_picture(
    path: Path, folder: Path | None = None, sha256: str | None = None, field: str = "image"
) -> Picture:
    """Read a PNG, JPEG or WebP file; of an animation, the first frame.

    The picture is rotated as its EXIF orientation says, converted to 8 bits and to sRGB, and
    blended with white where it is transparent.

    It is decoded in a separate process, limited to ``MAX_CPU_S`` of CPU time and to
    ``MAX_MEMORY_BYTES``.

    Args:
        path: The file.
        folder: The folder that the file must be in, links resolved; None: any.
        sha256: The digest that the file must have; None: any. The CPU limit is doubled for it,
            since that file was decoded before.
        field: The request field that names the file, for messages.

    Raises:
        RequestError: The file cannot be read or decoded, is outside the folder, exceeds a limit,
            or has another digest.
        EngineError: This machine cannot decode it now.
    """
    label = f"{field}={str(path)!r}"
    content = _content(path, folder, label)
    _check_bytes(content, label)
    digest = hashlib.sha256(content).hexdigest()
    cpu_s = 2 * MAX_CPU_S if digest == sha256 else MAX_CPU_S
    pixels = decode_in_subprocess(content, label, cpu_s)
    _check_digest(digest, sha256, label, field)
    return Picture(pixels, digest)


def check_picture(
    path: Path, folder: Path | None = None, sha256: str | None = None, field: str = "image"
) -> CheckedPicture:
    """Check that :func:`read_picture` can read a file. A file that was decoded before is not
    decoded again.

    Raises:
        RequestError, EngineError: As :func:`read_picture`.
    """
    label = f"{field}={str(path)!r}"
    picture = check_content(_content(path, folder, label), label)
    _check_digest(picture.sha256, sha256, label, field)
    return picture


def check_content(content: bytes, label: str) -> CheckedPicture:
    """Check a file's content as :func:`check_picture` does.

    Args:
        content: The file's bytes.
        label: Name of the picture in error messages.
    """
    _check_bytes(content, label)
    digest = hashlib.sha256(content).hexdigest()
    size = _sizes.get(digest)
    if size is None:
        size = Picture(decode_in_subprocess(content, label, MAX_CPU_S), digest).size
        _sizes[digest] = size
        while len(_sizes) > _MAX_CACHED_SIZES:
            _sizes.popitem(last=False)
    return CheckedPicture(size, digest)


def _check_digest(found: str, expected: str | None, label: str, field: str) -> None:
    """Called only once a picture was decoded: nothing is disclosed about other files."""
    if expected is not None and found != expected:
        raise RequestError(
            f"{label} is not the expected picture: its SHA-256 is not {expected}; leave "
            f"{field}_sha256 out to accept it"
        )


def _content(path: Path, folder: Path | None, label: str) -> bytes:
    """The bytes of a regular file, up to one more than the limit."""
    try:
        # Without O_NONBLOCK, opening a pipe waits for a writer.
        flags = os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC
        descriptor = os.open(os.path.expanduser(path), flags)
    except (OSError, ValueError) as error:  # ValueError: NUL in the name
        raise RequestError(f"{label} cannot be read: {cause(error)}") from error
    try:
        # The path of the open file: a link may be replaced meanwhile.
        real = Path(os.readlink(f"/proc/self/fd/{descriptor}"))
        if folder is not None and not real.is_relative_to(os.path.realpath(folder)):
            raise RequestError(
                f"{label} is outside {folder}, the only folder that pictures are read from: put it "
                "there, or name another --image-folder"
            )
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise RequestError(f"{label} is not a file: name a PNG, JPEG or WebP file")
        with open(descriptor, "rb", closefd=False) as file:
            content = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise RequestError(f"{label} cannot be read: {cause(error)}") from error
    finally:
        os.close(descriptor)
    return content


def _check_bytes(content: bytes, label: str) -> None:
    if len(content) > MAX_BYTES:
        raise RequestError(
            f"{label} has more than {MAX_BYTES // 2**20} MiB, which are the most that are read: "
            "make it smaller"
        )


def decode_picture(content: bytes, label: str) -> Pixels:
    """Decode a file's content to ``[H, W, 3]``, without limits on time and memory.

    Untrusted content is decoded by :func:`decode_in_subprocess`.

    Args:
        content: The file's bytes.
        label: Name of the picture in error messages.

    Raises:
        RequestError: It is damaged, or in none of the formats that are read.
        MemoryError: There is not enough memory.
    """
    return _to_rgb(to_srgb(_to_8_bit(_open_upright(content, label)), content, label))


def _open_upright(content: bytes, label: str) -> Image.Image:
    """The decoded picture, upright: a copy, since the decoder may hold as much memory again."""
    _check_pixels(_webp_size(content), label)
    with _opened(content, label) as image:
        _check_pixels(image.size, label)
        image.load()
        _rotate_upright(image)
        return image.copy()


def _rotate_upright(image: Image.Image) -> None:
    """Apply the EXIF orientation in place. Damaged EXIF data are ignored."""
    try:
        # In place, the pixels are rotated before Pillow rewrites the EXIF data, which may fail.
        ImageOps.exif_transpose(image, in_place=True)
    except MemoryError:
        raise
    except Exception as error:  # Pillow raises anything on damaged EXIF data
        logger.debug("EXIF data are ignored: %s", one_line(error))


def encode_png(image: Image.Image) -> bytes:
    """Encode a picture in memory as PNG, with the pixels that :func:`read_picture` would return.

    Raises:
        RequestError: It is too large, or its color space cannot be used.
    """
    label = f"image={image.mode} picture"
    _check_pixels(image.size, label)
    upright = image.copy()
    _rotate_upright(upright)
    pixels = _to_rgb(to_srgb(_to_8_bit(upright), b"", label))
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def _check_pixels(size: tuple[int, int], label: str) -> None:
    width, height = size
    if width * height > MAX_PIXELS:
        raise RequestError(
            f"{label} has {width}x{height} pixels: {MAX_PIXELS // 10**6} million are the most that "
            "are read; make it smaller"
        )


def _webp_size(content: bytes) -> tuple[int, int]:
    """Width and height from the first chunk of a WebP file (RFC 9649, 2.5 to 2.7); zeros for any
    other file. Pillow allocates the memory before it reports the size."""
    if content[:4] != b"RIFF" or content[8:12] != b"WEBP":
        return 0, 0
    kind = content[12:16]
    if kind == b"VP8X":
        return _little_endian(content[24:27]) + 1, _little_endian(content[27:30]) + 1
    if kind == b"VP8L":
        bits = _little_endian(content[21:25])
        return (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
    return _little_endian(content[26:28]) & 0x3FFF, _little_endian(content[28:30]) & 0x3FFF


def _little_endian(content: bytes) -> int:
    return int.from_bytes(content, "little")


@contextmanager
def _opened(content: bytes, label: str) -> Iterator[Image.Image]:
    """A picture whose header was read. Exceptions of its decoder become RequestErrors."""
    try:
        with warnings.catch_warnings():  # large pictures have a limit of our own; damaged EXIF
            warnings.simplefilter("ignore")
            with Image.open(io.BytesIO(content), formats=FORMATS) as image:
                yield image
    except (RequestError, MemoryError):
        raise
    except UnidentifiedImageError as error:
        raise RequestError(f"{label} is no picture in PNG, JPEG or WebP: convert it") from error
    except Image.DecompressionBombError as error:
        raise RequestError(
            f"{label} would have more than {MAX_PIXELS // 10**6} million pixels, which are the "
            "most that are read: make it smaller"
        ) from error
    except Exception as error:  # decoders raise anything on damaged files
        raise RequestError(
            f"{label} is damaged or incomplete ({one_line(error)}): save it again"
        ) from error


def _to_8_bit(image: Image.Image) -> Image.Image:
    """A 16-bit gray picture in 8 bits, white where it is transparent; any other unchanged."""
    if not image.mode.startswith("I"):
        return image
    values = np.asarray(image).clip(0, 65535)
    gray = ((values.astype(np.uint32) + 128) // 257).astype(np.uint8)
    gray[values == image.info.get("transparency", -1)] = 255
    result = Image.fromarray(gray)
    result.info = {name: value for name, value in image.info.items() if name != "transparency"}
    return result


def _to_rgb(image: Image.Image) -> Pixels:
    """Pixels ``[H, W, 3]``, blended with white where the picture is transparent."""
    if image.has_transparency_data:
        rgba = image if image.mode == "RGBA" else image.convert("RGBA")
        image = Image.new("RGB", rgba.size, _WHITE)
        image.paste(rgba, mask=rgba.getchannel("A"))
        del rgba
    return np.array(image if image.mode == "RGB" else image.convert("RGB"))


def noise_pictures(request: ResolvedRequest, names: Iterable[str]) -> dict[str, Pixels]:
    """Noise of the video's size by name of a picture, for measurements."""
    size = (request.height, request.width, 3)
    return {
        name: np.random.default_rng(seed).integers(0, 256, size, dtype=np.uint8)
        for seed, name in enumerate(names)
    }
