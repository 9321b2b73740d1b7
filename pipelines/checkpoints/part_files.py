"""Finds the files of weights in a path that a user names: a file, shards, or a folder."""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Sequence
from pathlib import Path

from longtake.errors import ModelError
from longtake.pipelines.loading.files import model_files

SUFFIXES = (".safetensors", ".gguf", ".pt", ".pth", ".bin", ".ckpt")
"""Endings of files of weights."""

_SHARD = re.compile(r"-\d{5}-of-\d{5}\.\w+$")

_STANDARD = re.compile(r"(diffusion_pytorch_model|model)(\.\w+)*\.safetensors")
"""Beginning of the names that diffusers and transformers give to weights and indexes of shards."""


_MAX_TOGETHER = 4
"""The most files of one component that no index names."""


class SeveralFilesError(ModelError):
    """A folder holds several files of weights, and no index.

    Attributes:
        files: The files; none if they are too many to be those of one component.
    """

    files: tuple[Path, ...] = ()


def shown(path: Path) -> str:
    """A path on one line of a message."""
    text = os.fspath(path)
    return text if text.isprintable() else repr(text)


def files_of(path: Path) -> tuple[Path, ...]:
    """The files of weights of one component.

    Args:
        path: A file, the index of shards, or a folder that holds either of them, and one alone.

    Raises:
        SeveralFilesError: There are several, of which one must be named.
        ModelError: There are no such files.
    """
    try:
        is_folder = stat.S_ISDIR(os.stat(path).st_mode)
        names = os.listdir(path) if is_folder else []
    except FileNotFoundError as error:
        raise ModelError(f"{shown(path)} is no file and no folder: check the name") from error
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or "no file can have that name"
        raise ModelError(f"{shown(path)} cannot be read: {reason}") from error
    if is_folder:
        path = path / _weights_in(path, names)
    elif _SHARD.search(path.name):
        raise ModelError(
            f"{shown(path)} is one of several shards: name their folder, or their .index.json"
        )
    if path.name.endswith(".json"):
        return tuple(path.parent / name for name in model_files.shards(path))
    return (path,)


def holds_weights(folder: Path) -> bool:
    """Whether a folder itself, not one in it, holds files of weights."""
    try:
        return any(name.endswith(SUFFIXES) for name in os.listdir(folder))
    except OSError:
        return False


def _weights_in(folder: Path, names: Sequence[str]) -> str:
    """Name of the file of weights in a folder, or of the index of its shards."""
    if "model_index.json" in names:
        raise ModelError(
            f"{shown(folder)} is a whole model: name the folder of one component in it"
        )
    if any(_STANDARD.match(name) for name in names):
        return model_files.weights_file(names, folder)
    found = sorted(name for name in names if name.endswith(SUFFIXES))
    if not found:
        raise ModelError(f"{shown(folder)} holds no weights: name a file, or a folder with one")
    if len(found) > 1:
        error = SeveralFilesError(
            f"{shown(folder)} holds {', '.join(found[:4])}: name one of them, or the .index.json "
            "of shards"
        )
        if len(found) <= _MAX_TOGETHER:
            error.files = tuple(folder / name for name in found)
        raise error
    return found[0]
