"""Pictures from files that nobody vouches for."""

from __future__ import annotations

import contextlib
import hashlib
import io
import os
import stat
import warnings
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import ExifTags, Image, UnidentifiedImageError

from longtake.engine.media.color_profiles import in_srgb
from longtake.engine.media.picture_process import MAX_CPU_S, MAX_PIXELS, decoded_apart
from longtake.errors import RequestError, one_line
from longtake.files.atomic import cause

if TYPE_CHECKING:  # what decodes is started for each picture, and imports no more than it needs
    from longtake.configs.request import ResolvedRequest
    from longtake.pipelines.picture import Pixels

FORMATS = ("PNG", "JPEG", "WEBP")
MAX_BYTES = 64 * 2**20
"""Of a file."""
_MOST_REMEMBERED = 4096

_WHITE = (255, 255, 255)
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""What turns a picture upright, by EXIF's orientation."""

_sizes: OrderedDict[str, tuple[int, int]] = OrderedDict()
"""Of pictures that were decoded before, by SHA-256; see :func:`check_picture`."""


@dataclass(frozen=True)
class CheckedPicture:
    """What is known of a picture that can be decoded.

    Attributes:
        size: height and width, upright.
        sha256: of the file, in hexadecimal.
    """

    size: tuple[int, int]
    sha256: str


@dataclass(frozen=True)
class Picture:
    """A picture, upright.

    Attributes:
        pixels: ``[H, W, 3]``.
        sha256: of the file, in hexadecimal.
    """

    pixels: Pixels
    sha256: str

    @property
    def size(self) -> tuple[int, int]:
        """Height and width."""
        height, width, _ = self.pixels.shape
        return height, width


def read_picture(path: Path, folder: Path | None = None, sha256: str | None = None) -> Picture:
    """Read a PNG, JPEG or WebP file; of an animation, the first picture.

    It is turned as its EXIF data say, brought to 8 bits and to sRGB, and put on white where it is
    transparent.

    It is decoded in a process of its own, which has ``MAX_CPU_S`` of CPU time and
    ``MAX_MEMORY_BYTES``, and ends with all that it took.

    Args:
        folder: the file must lie in it, whatever links lead there; None: anywhere.
        sha256: the file must be this one, which was decoded before, and has twice the time now;
            None: any.

    Raises:
        RequestError: it may not or cannot be read, is no such picture, too large, takes too long,
            or is another.
        EngineError: this machine cannot decode it now.
    """
    said = f"image={str(path)!r}"
    content = _content(path, folder, said)
    _check_bytes(content, said)
    digest = hashlib.sha256(content).hexdigest()
    cpu_s = 2 * MAX_CPU_S if digest == sha256 else MAX_CPU_S
    pixels = decoded_apart(content, said, cpu_s)
    _check_meant(digest, sha256, said)
    return Picture(pixels, digest)


def check_picture(
    path: Path, folder: Path | None = None, sha256: str | None = None
) -> CheckedPicture:
    """What :func:`read_picture` would read; it is decoded only if it was not before.

    Raises:
        As :func:`read_picture`.
    """
    said = f"image={str(path)!r}"
    picture = check_content(_content(path, folder, said), said)
    _check_meant(picture.sha256, sha256, said)
    return picture


def check_content(content: bytes, said: str) -> CheckedPicture:
    """The same of a file's content.

    Args:
        said: what it is called in messages.
    """
    _check_bytes(content, said)
    digest = hashlib.sha256(content).hexdigest()
    size = _sizes.get(digest)
    if size is None:
        size = Picture(decoded_apart(content, said, MAX_CPU_S), digest).size
        _sizes[digest] = size
        while len(_sizes) > _MOST_REMEMBERED:
            _sizes.popitem(last=False)
    return CheckedPicture(size, digest)


def _check_meant(found: str, meant: str | None, said: str) -> None:
    """That a picture, which was decoded, so that nothing is said of other files, is the one."""
    if meant is not None and found != meant:
        raise RequestError(
            f"{said} is another picture than was meant: its SHA-256 is not {meant}; leave "
            "image_sha256 out to take it"
        )


def _content(path: Path, folder: Path | None, said: str) -> bytes:
    """The bytes of a regular file, if they are not too many."""
    try:
        # A pipe would keep us waiting here without O_NONBLOCK.
        flags = os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC
        descriptor = os.open(os.path.expanduser(path), flags)
    except (OSError, ValueError) as error:  # ValueError: a name that no file can have
        raise RequestError(f"{said} cannot be read: {cause(error)}") from error
    try:
        # Of what is open, since its name may lead elsewhere in a moment.
        real = Path(os.readlink(f"/proc/self/fd/{descriptor}"))
        if folder is not None and not real.is_relative_to(os.path.realpath(folder)):
            raise RequestError(
                f"{said} is outside {folder}, the only folder that pictures are read from: put it "
                "there, or name another --image-folder"
            )
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise RequestError(f"{said} is no file: name a PNG, JPEG or WebP file")
        with open(descriptor, "rb", closefd=False) as file:
            content = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise RequestError(f"{said} cannot be read: {cause(error)}") from error
    finally:
        os.close(descriptor)
    return content


def _check_bytes(content: bytes, said: str) -> None:
    if len(content) > MAX_BYTES:
        raise RequestError(
            f"{said} has more than {MAX_BYTES // 2**20} MiB, which are the most that are read: "
            "make it smaller"
        )


def decoded(content: bytes, said: str) -> Pixels:
    """The pixels of a file's content, ``[H, W, 3]``.

    It runs in a process of its own: nothing bounds its time and memory here.

    Args:
        said: what the picture is called in messages.

    Raises:
        RequestError: it is no picture that is read, or damaged.
        MemoryError: there is not enough.
    """
    return _pixels(in_srgb(_in_bytes(_upright(content, said)), content, said))


def _upright(content: bytes, said: str) -> Image.Image:
    """The picture, decoded and turned; its decoder, which may hold as much again, is let go."""
    _check_pixels(_webp_size(content), said)
    with _opened(content, said) as image:
        _check_pixels(image.size, said)
        image.load()
        return _turned(image)


def _turned(image: Image.Image) -> Image.Image:
    """A copy, turned as its EXIF data say."""
    orientation = 1
    with contextlib.suppress(Exception):  # damaged EXIF data say nothing
        orientation = image.getexif().get(ExifTags.Base.Orientation, 1)
    if orientation in _UPRIGHT:
        return image.transpose(_UPRIGHT[orientation])
    return image.copy()


def png_of(image: Image.Image) -> bytes:
    """A PNG file of a picture in memory, with the pixels that reading the picture's own file gives.

    Raises:
        RequestError: it is too large, or in a color space that cannot be used.
    """
    said = f"image={image.mode} picture"
    _check_pixels(image.size, said)
    pixels = _pixels(in_srgb(_in_bytes(_turned(image)), b"", said))
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def _check_pixels(size: tuple[int, int], said: str) -> None:
    width, height = size
    if width * height > MAX_PIXELS:
        raise RequestError(
            f"{said} has {width}x{height} pixels: {MAX_PIXELS // 10**6} million are the most that "
            "are read; make it smaller"
        )


def _webp_size(content: bytes) -> tuple[int, int]:
    """Width and height by the first chunk of a WebP file, for which Pillow takes the memory before
    it says them (RFC 9649, 2.5 to 2.7); zeros of any other file."""
    if content[:4] != b"RIFF" or content[8:12] != b"WEBP":
        return 0, 0
    kind = content[12:16]
    if kind == b"VP8X":
        return _little(content[24:27]) + 1, _little(content[27:30]) + 1
    if kind == b"VP8L":
        bits = _little(content[21:25])
        return (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
    return _little(content[26:28]) & 0x3FFF, _little(content[28:30]) & 0x3FFF


def _little(content: bytes) -> int:
    return int.from_bytes(content, "little")


@contextmanager
def _opened(content: bytes, said: str) -> Iterator[Image.Image]:
    """A picture of which the header was read; what its decoder raises becomes a refusal."""
    try:
        with warnings.catch_warnings():  # of many pixels, which are counted here; of damaged EXIF
            warnings.simplefilter("ignore")
            with Image.open(io.BytesIO(content), formats=FORMATS) as image:
                yield image
    except (RequestError, MemoryError):
        raise
    except UnidentifiedImageError as error:
        raise RequestError(f"{said} is no picture in PNG, JPEG or WebP: convert it") from error
    except Image.DecompressionBombError as error:
        raise RequestError(
            f"{said} would have more than {MAX_PIXELS // 10**6} million pixels, which are the most "
            "that are read: make it smaller"
        ) from error
    except Exception as error:  # decoders raise anything on damaged files
        raise RequestError(
            f"{said} is damaged or not whole ({one_line(error)}): save it again"
        ) from error


def _in_bytes(image: Image.Image) -> Image.Image:
    """A picture of 16 bits of gray in 8 bits, white where it is transparent; any other as it is."""
    if not image.mode.startswith("I"):
        return image
    values = np.asarray(image).clip(0, 65535)
    gray = ((values.astype(np.uint32) + 128) // 257).astype(np.uint8)
    gray[values == image.info.get("transparency", -1)] = 255
    small = Image.fromarray(gray)
    small.info = {name: said for name, said in image.info.items() if name != "transparency"}
    return small


def _pixels(image: Image.Image) -> Pixels:
    if image.has_transparency_data:
        seen = image if image.mode == "RGBA" else image.convert("RGBA")
        image = Image.new("RGB", seen.size, _WHITE)
        image.paste(seen, mask=seen.getchannel("A"))
        del seen
    return np.array(image if image.mode == "RGB" else image.convert("RGB"))


def any_picture(request: ResolvedRequest) -> Pixels | None:
    """A picture to measure or compare with, if a request needs one: noise of the video's size."""
    if request.i2v_mode is None:
        return None
    size = (request.height, request.width, 3)
    return np.random.default_rng(0).integers(0, 256, size, dtype=np.uint8)
