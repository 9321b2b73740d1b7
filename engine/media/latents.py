"""Latents in a file, together with how they came to be: all that decoding them needs."""

from __future__ import annotations

import itertools
import logging
import re
import shlex
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ValidationError
from safetensors.numpy import save

from longtake.configs.engine import EngineConfig
from longtake.configs.request import DecodeRequest, ResolvedDecode, ResolvedRequest
from longtake.engine.launch.torchrun import TorchrunPlace
from longtake.engine.media.snapshot import Identity
from longtake.errors import RequestError, one_line
from longtake.files.atomic import cause, partial_path, place_new
from longtake.pipelines.tensor_files import (
    FLOAT_DTYPES,
    MAX_LATENTS_BYTES,
    TensorFileError,
    open_tensors,
)

logger = logging.getLogger(__name__)

Array = npt.NDArray[np.float32]

LATENTS_SUFFIX = ".safetensors"
_TENSOR = "latents"
_HEADER = "longtake"


class Origin(BaseModel):
    """How some latents came to be, as it stands in their file's header.

    Attributes:
        request: that was rendered.
        engine: that rendered it.
        identity: all that they follow from, where they were kept for the decode alone.
    """

    request: ResolvedRequest
    engine: EngineConfig
    identity: Identity | None = None

    def made(self, latents: ResolvedDecode) -> bool:
        """Whether these are all the latents that came of it, and whole."""
        sizes = ("num_videos", "num_frames", "height", "width")
        return all(getattr(self.request, name) == getattr(latents, name) for name in sizes)

    def decoded(self, how: ResolvedDecode) -> ResolvedRequest:
        """The request that gives the video that its latents become now."""
        asked = how.model_dump(include=set(DecodeRequest.model_fields))
        return self.request.model_copy(update={**asked, "output_type": "frames"})


@dataclass(frozen=True)
class LatentsFile:
    """What a file of latents holds.

    Attributes:
        latents: ``[B, C, F, H, W]``, float32, before the decoder's scale.
        origin: None in a file that longtake did not write.
    """

    latents: Array
    origin: Origin | None


class KeptLatents:
    """Latents in a file of their own, for as long as frames are being made of them.

    Should that fail, or this process die, they need not be rendered again.

    Args:
        output: where the frames go; the file stands beside it, as ``out.latents.safetensors``.
        engine: that the latents come from.
        overwrite: whether the output may replace an earlier one.

    Attributes:
        path: of the file, while there is one.
    """

    def __init__(self, output: Path, engine: EngineConfig, *, overwrite: bool = False) -> None:
        self._output, self._engine, self._overwrite = output, engine, overwrite
        self.path: Path | None = None

    def write(self, latents: Array, origin: Origin | None) -> None:
        """Write the file; where that fails, say so and go on.

        Args:
            latents: ``[B, C, F, H, W]``.
            origin: how they came to be.
        """
        path = kept_latents_path(self._output)
        partial = partial_path(path)
        try:
            partial.write_bytes(latents_bytes(latents, origin))
            self.path = self._placed(partial)
        except OSError as error:
            logger.warning("%s cannot keep the latents: %s", path, cause(error))
        finally:
            partial.unlink(missing_ok=True)

    def _placed(self, partial: Path) -> Path:
        """Give the whole file a name; with a number where those of a job are that failed."""
        for number in itertools.count():
            with suppress(FileExistsError):
                path = kept_latents_path(self._output, number)
                place_new(partial, path)
                return path
        raise AssertionError("numbers do not end")

    def discard(self) -> None:
        """The frames are there, or nobody wants them."""
        if self.path is not None:
            self.path.unlink(missing_ok=True)
            self.path = None

    def way_on(self, error: BaseException) -> str:
        """What went wrong, and, on the same line, the command that finishes the work."""
        if self.path is None:
            return str(error)
        engine = self._engine
        command = ["longtake", "decode", str(self.path), "--model", engine.model]
        if engine.revision is not None:
            command += ["--revision", engine.revision]
        command += ["--device", engine.device]
        if engine.devices > 1 and not TorchrunPlace.given():
            command += ["--devices", str(engine.devices)]
        braces = str(self._output).replace("{", "{{").replace("}", "}}")
        command += ["-o", braces.replace("{{index}}", "{index}")]
        command += ["--overwrite"] if self._overwrite else []
        first, *lines = str(error).split("\n")
        first += f"; the latents are kept, and can be decoded: {shlex.join(command)}"
        return "\n".join([first, *lines])


def kept_latents_path(output: Path, number: int = 0) -> Path:
    """Where the latents of an output are kept while frames are made of them."""
    name = f"latents-{number}" if number else "latents"
    return output.with_name(f"{output.stem}.{name}{LATENTS_SUFFIX}")


def output_name_of(kept: Path) -> str:
    """The name of the output that latents belong to, by that of their file, without a suffix."""
    return re.sub(r"\.latents(-\d+)?$", "", kept.stem)


def latents_bytes(latents: Array, origin: Origin | None) -> bytes:
    """A safetensors file of latents, of one video ``[C, F, H, W]`` or of several."""
    header = None if origin is None else {_HEADER: origin.model_dump_json()}
    return save({_TENSOR: np.ascontiguousarray(latents)}, metadata=header)


def read_latents(path: Path) -> LatentsFile:
    """Read a file of latents: its tensor ``latents``, or the only one that it holds.

    Raises:
        RequestError: it cannot be read, or holds something else.
    """
    try:
        with open_tensors(path, "pt", MAX_LATENTS_BYTES) as file:
            names = list(file.keys())
            if _TENSOR not in names and len(names) != 1:
                raise RequestError(f"{path} holds {len(names)} tensors, none of them {_TENSOR!r}")
            name = _TENSOR if _TENSOR in names else names[0]
            held = file.get_slice(name)
            if held.get_dtype() not in FLOAT_DTYPES:
                raise RequestError(
                    f"{path} holds {held.get_dtype()}: latents are {', '.join(FLOAT_DTYPES)}"
                )
            _check_shape(held.get_shape())
            latents = file.get_tensor(name).float().numpy()
            header = (file.metadata() or {}).get(_HEADER)
    except OSError as error:
        why = error.strerror or one_line(error)
        raise RequestError(f"latents={str(path)!r} cannot be read: {why}") from error
    except TensorFileError as error:
        raise RequestError(
            f"latents={str(path)!r} is no whole safetensors file ({one_line(error)}): "
            "longtake generate -o x.safetensors writes one"
        ) from error
    try:
        return LatentsFile(checked_latents(latents), _read_origin(header))
    except RequestError as error:
        raise RequestError(f"{path}: {error}") from error


def checked_latents(latents: npt.ArrayLike | None) -> Array:
    """Latents of one video, ``[C, F, H, W]``, or of several, as ``[B, C, F, H, W]`` in float32.

    Raises:
        RequestError: no numbers, another shape, or values that are not finite.
    """
    try:
        array: Array = np.array(latents, dtype=np.float32)
    except (TypeError, ValueError) as error:
        raise RequestError(
            f"latents must be an array of numbers in the host's memory: {one_line(error)}"
        ) from error
    _check_shape(array.shape)
    if not np.isfinite(array).all():
        raise RequestError("latents must be finite, and some of these are not: render them again")
    return array if array.ndim == 5 else array[None]


def _check_shape(shape: Sequence[int]) -> None:
    if len(shape) not in (4, 5) or 0 in shape:
        raise RequestError(
            f"latents of shape {list(shape)} must have channels, frames, rows and columns, and "
            "before them may have videos; none may be 0"
        )


def _read_origin(header: str | None) -> Origin | None:
    if header is None:
        return None
    try:
        return Origin.model_validate_json(header)
    except ValidationError as error:
        raise RequestError(
            f"its header is of another version of longtake, or damaged ({one_line(error)}): decode "
            "it with the version that wrote it, or save its tensor to a file without a header"
        ) from error
