"""Files of latents, with everything that decoding them needs."""

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
from longtake.engine.media.arrays import Array
from longtake.engine.media.identity import Identity
from longtake.engine.media.paths import kept_latents_path
from longtake.engine.torchrun import TorchrunEnvironment
from longtake.errors import RequestError, one_line
from longtake.files.atomic import cause, partial_path, rename_to_unused
from longtake.pipelines.loading.files.tensor_files import (
    FLOAT_DTYPES,
    MAX_LATENTS_BYTES,
    TensorFileError,
    open_tensors,
)

logger = logging.getLogger(__name__)

_TENSOR = "latents"
_HEADER = "longtake"


class Origin(BaseModel):
    """Provenance of latents; the header of their file.

    Attributes:
        request: The rendered request.
        engine: Configuration of the engine that rendered it.
        identity: Everything that the latents depend on; only in files kept until the decode is
            finished.
    """

    request: ResolvedRequest
    engine: EngineConfig
    identity: Identity | None = None

    def describes(self, latents: ResolvedDecode) -> bool:
        """Whether latents of this size are all those of the request."""
        sizes = ("num_videos", "num_frames", "height", "width")
        return all(getattr(self.request, name) == getattr(latents, name) for name in sizes)

    def request_decoded_as(self, decode: ResolvedDecode) -> ResolvedRequest:
        """The request that renders the same video as decoding the latents this way."""
        fields = decode.model_dump(include=set(DecodeRequest.model_fields))
        return self.request.model_copy(update={**fields, "output_type": "frames"})


@dataclass(frozen=True)
class LatentsFile:
    """Content of a file of latents.

    Attributes:
        latents: ``[B, C, F, H, W]``, float32, before the decoder's scale.
        origin: Provenance; None in a file that longtake did not write.
    """

    latents: Array
    origin: Origin | None


class KeptLatents:
    """A file of latents that exists while they are decoded.

    If decoding fails, or this process dies, they need not be rendered again.

    Args:
        output: Path of the output; the file is next to it, as ``out.latents.safetensors``.
        engine: Configuration of the engine that renders the latents.
        overwrite: Whether the output may replace an earlier one.

    Attributes:
        path: The file; None while there is none.
    """

    def __init__(self, output: Path, engine: EngineConfig, *, overwrite: bool = False) -> None:
        self._output, self._engine, self._overwrite = output, engine, overwrite
        self.path: Path | None = None

    def write(self, latents: Array, origin: Origin | None) -> None:
        """Write the file. A failure is logged, and does not stop the rendering.

        Args:
            latents: ``[B, C, F, H, W]``.
            origin: Their provenance.
        """
        path = kept_latents_path(self._output)
        partial = partial_path(path)
        try:
            partial.write_bytes(latents_bytes(latents, origin))
            self.path = self._place(partial)
        except OSError as error:
            logger.warning("%s cannot keep the latents: %s", path, cause(error))
        finally:
            partial.unlink(missing_ok=True)

    def _place(self, partial: Path) -> Path:
        """Give the complete file its name, numbered if a failed rendering left one."""
        for number in itertools.count():
            with suppress(FileExistsError):
                path = kept_latents_path(self._output, number)
                rename_to_unused(partial, path)
                return path
        raise AssertionError("numbers do not end")

    def discard(self) -> None:
        """Remove the file, once the frames are written or no longer needed."""
        if self.path is not None:
            self.path.unlink(missing_ok=True)
            self.path = None

    def with_command(self, error: BaseException) -> str:
        """An error's message; if there is a file, its first line ends with the command that decodes
        it."""
        if self.path is None:
            return str(error)
        engine = self._engine
        command = ["longtake", "decode", str(self.path), "--model", engine.model]
        if engine.revision is not None:
            command += ["--revision", engine.revision]
        if engine.vae is not None:
            command += ["--vae", str(engine.vae)]
        command += ["--device", engine.device]
        if engine.devices > 1 and not TorchrunEnvironment.is_set():
            command += ["--devices", str(engine.devices)]
        template = str(self._output).replace("{", "{{").replace("}", "}}")
        command += ["-o", template.replace("{{index}}", "{index}")]
        command += ["--overwrite"] if self._overwrite else []
        first, *lines = str(error).split("\n")
        first += f"; the latents are kept, and can be decoded: {shlex.join(command)}"
        return "\n".join([first, *lines])


def output_name_of(kept: Path) -> str:
    """The stem of an output, from the name of its file of latents."""
    return re.sub(r"\.latents(-\d+)?$", "", kept.stem)


def latents_bytes(latents: Array, origin: Origin | None) -> bytes:
    """Latents as the content of a safetensors file.

    Args:
        latents: ``[C, F, H, W]`` or ``[B, C, F, H, W]``.
        origin: Their provenance; None writes no header.
    """
    header = None if origin is None else {_HEADER: origin.model_dump_json()}
    return save({_TENSOR: np.ascontiguousarray(latents)}, metadata=header)


def read_latents(path: Path) -> LatentsFile:
    """Read a file of latents: its tensor ``latents``, or its only one.

    Raises:
        RequestError: The file cannot be read, or holds something else.
    """
    try:
        with open_tensors(path, "pt", MAX_LATENTS_BYTES) as file:
            names = list(file.keys())
            if _TENSOR not in names and len(names) != 1:
                raise RequestError(f"{path} holds {len(names)} tensors, none of them {_TENSOR!r}")
            name = _TENSOR if _TENSOR in names else names[0]
            stored = file.get_slice(name)
            if stored.get_dtype() not in FLOAT_DTYPES:
                raise RequestError(
                    f"{path} holds {stored.get_dtype()}: latents are {', '.join(FLOAT_DTYPES)}"
                )
            _check_shape(stored.get_shape())
            latents = file.get_tensor(name).float().numpy()
            header = (file.metadata() or {}).get(_HEADER)
    except OSError as error:
        reason = error.strerror or one_line(error)
        raise RequestError(f"latents={str(path)!r} cannot be read: {reason}") from error
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
    """Convert latents to ``[B, C, F, H, W]`` in float32.

    Args:
        latents: ``[C, F, H, W]`` or ``[B, C, F, H, W]``.

    Raises:
        RequestError: They are not numbers, not finite, or of another shape.
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
