"""Where the files of an output go.

Next to ``out.mp4`` are ``out.mp4.json``, its metadata, and, while it is rendered,
``out.snapshot.safetensors`` or ``out.latents.safetensors``.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

LATENTS_SUFFIX = ".safetensors"

INDEX = "{index}"
"""Placeholder for the number of each of several videos."""


@dataclass(frozen=True)
class OutputTarget:
    """Where an output goes, and what it may replace.

    Attributes:
        path: Path of the output; its suffix selects the format.
        metadata: Whether a .json is written next to the videos.
        overwrite: Whether an earlier output of this path is replaced.
        token: Part of the temporary names; random if None.
    """

    path: Path
    metadata: bool = True
    overwrite: bool = False
    token: str | None = None


def output_paths(path: Path, num_videos: int) -> list[Path]:
    """The files of several videos, ``out-0.mp4``, ``out-1.mp4``, ...; a single one keeps its name.

    If the name has ``{index}``, the number replaces it, for a single video as well.
    """
    if INDEX in path.name:
        return [_with_index(path, video) for video in range(num_videos)]
    if num_videos == 1:
        return [path]
    return [path.with_name(f"{path.stem}-{video}{path.suffix}") for video in range(num_videos)]


def metadata_path(path: Path) -> Path:
    """The metadata file of an output: ``out.mp4.json`` for ``out.mp4``."""
    first = _with_index(path, 0)
    return first.with_name(f"{first.name}.json")


def snapshot_path(output: Path, number: int = 0) -> Path:
    """The snapshot file next to an output.

    Args:
        output: Path of the output.
        number: Distinguishes it from snapshots of other renderings.
    """
    return _tensors_beside(output, "snapshot", number)


def kept_latents_path(output: Path, number: int = 0) -> Path:
    """The file that an output's latents are kept in while they are decoded."""
    return _tensors_beside(output, "latents", number)


def _tensors_beside(output: Path, kind: str, number: int) -> Path:
    name = f"{kind}-{number}" if number else kind
    return output.with_name(f"{output.stem}.{name}{LATENTS_SUFFIX}")


def _with_index(path: Path, video: int) -> Path:
    return path.with_name(path.name.replace(INDEX, str(video)))
