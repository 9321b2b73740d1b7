"""Keeps counts in a file beside the hub's, named after all that they depend on; without torch."""

from __future__ import annotations

import hashlib
import importlib.util
import logging
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

from pydantic import ValidationError

from longtake.errors import EngineError, one_line
from longtake.files.atomic import write_atomically
from longtake.files.reading import MAX_JSON_BYTES, read_regular
from longtake.pipelines.counting.counts import Counts
from longtake.pipelines.loading.checkpoint import Checkpoint
from longtake.pipelines.loading.files import hub
from longtake.pipelines.loading.files.model_files import CONFIGS
from longtake.version import __version__

logger = logging.getLogger(__name__)

_LIBRARIES = ("torch", "diffusers", "transformers")


class CountsFile:
    """The file of one model's counts. A failure to read or write it is no error.

    Args:
        checkpoint: The model's files.
        skeleton: ``module:function`` that builds the model without weights.
    """

    def __init__(self, checkpoint: Checkpoint, skeleton: str) -> None:
        self._path = _path(checkpoint, skeleton)

    def read(self) -> Counts:
        """The stored counts; empty if there are none that can be used."""
        if self._path is None:
            return Counts()
        try:
            return Counts.model_validate_json(read_regular(self._path, MAX_JSON_BYTES))
        except FileNotFoundError:
            return Counts()
        except (OSError, ValidationError) as error:
            logger.debug("counts are made again: %s: %s", self._path, one_line(error))
            return Counts()

    def write(self, counts: Counts) -> None:
        """Store counts, in place of the earlier ones."""
        if self._path is None:
            return
        try:
            write_atomically(self._path, counts.model_dump_json().encode())
        except EngineError as error:
            logger.debug("counts are not kept: %s", error)


def _path(checkpoint: Checkpoint, skeleton: str) -> Path | None:
    folder = hub.cache_folder("counted-costs")
    if folder is None:
        return None
    try:
        return folder / f"{_digest(checkpoint, skeleton)}.json"
    except OSError as error:
        logger.debug("counts are not kept: %s", error)
        return None


def _digest(checkpoint: Checkpoint, skeleton: str) -> str:
    """A digest of the configuration files, the family's source files and the libraries."""
    digest = hashlib.sha256()
    versions = [f"{name} {metadata.version(name)}" for name in _LIBRARIES]
    for line in (f"longtake {__version__}", *versions, skeleton):
        digest.update(f"{line}\0".encode())
    for _, part in sorted(checkpoint.parts.items()):
        digest.update(part.digest.encode())
    for file in (*_configurations(checkpoint), *_sources(skeleton)):
        digest.update(hashlib.sha256(file.read_bytes()).digest())
    return digest.hexdigest()


def _configurations(checkpoint: Checkpoint) -> Iterator[Path]:
    yield checkpoint.folder / "model_index.json"
    for component in checkpoint.components:
        for name in CONFIGS:
            if (checkpoint.folder / component / name).is_file():
                yield checkpoint.folder / component / name


def _sources(skeleton: str) -> list[Path]:
    """Source files of the family's package: while it is being written, its version stays."""
    module = skeleton.partition(":")[0]
    try:
        found = importlib.util.find_spec(module)
    except ImportError:  # the error is raised when it is called
        found = None
    if found is None or found.origin is None:
        return []
    file = Path(found.origin)
    return sorted(file.parent.rglob("*.py")) if "." in module else [file]
