"""Downloads the files of a model that are read, and checks them against the hub's digests."""

from __future__ import annotations

import os
import shutil
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields
from pathlib import Path

from longtake.configs.engine import EngineConfig
from longtake.errors import ModelError
from longtake.files.sizes import format_bytes
from longtake.pipelines import registry
from longtake.pipelines.loading.checkpoint import Checkpoint
from longtake.pipelines.loading.files import hub
from longtake.pipelines.loading.files.hub import HubFile
from longtake.pipelines.runtime.progress import OnProgress, Progress

_INDEX = "model_index.json"

_MARGIN_BYTES = 2**26
"""Space that is left on the disk."""

_INTERVAL_S = 0.5
"""Time between two reports of progress."""


@dataclass(frozen=True)
class Download:
    """The files of a model that are read.

    Attributes:
        checkpoint: The model, whose configuration files are here.
        files: Files from the hub; empty for a model that is not from the hub.
    """

    checkpoint: Checkpoint
    files: tuple[HubFile, ...]

    @classmethod
    def plan(cls, config: EngineConfig) -> Download:
        """Find out what is read of a model. Only its configuration files are downloaded.

        Args:
            config: The model, its revision, and the components that come from elsewhere.

        Raises:
            ModelError: The model does not exist, is not supported or complete, or the hub cannot be
                reached.
        """
        checkpoint = Checkpoint.open(config.model, config.revision, parts=config.parts)
        if checkpoint.repository is None or checkpoint.revision is None:
            registry.inspect(checkpoint)
            return cls(checkpoint, ())
        source = checkpoint.repository, checkpoint.revision
        hub.describe_files(*source, (_INDEX,))  # refuse before files of earlier runs are listed
        listing = _Listing(*(getattr(checkpoint, each.name) for each in fields(checkpoint)))
        try:
            registry.inspect(listing)
        except _FilesNamed as named:
            return cls(checkpoint, tuple(hub.describe_files(*source, named.files)))
        return cls(checkpoint, ())

    @property
    def num_bytes(self) -> int:
        """Size of all files."""
        return sum(file.num_bytes for file in self.files)

    @property
    def missing(self) -> list[HubFile]:
        """Files that are not here, or whose size is wrong."""
        return [file for file in self.files if not self._is_here(file)]

    def run(self, on_progress: OnProgress, on_note: Callable[[str], None]) -> None:
        """Download what is missing, then check the size and the digest of every file.

        A run that was interrupted is continued by the next one with the files that are missing. A
        file of an earlier run that turns out to be damaged is downloaded again.

        Args:
            on_progress: Called with the bytes of the phases "downloading" and "checking".
            on_note: Called with a sentence for each damaged file.

        Raises:
            ModelError: The disk is too small, a file cannot be downloaded, arrives damaged, or does
                not fit the model's configuration.
        """
        self._fetch(self.missing, on_progress)
        damaged = self._damaged(self.files, on_progress)
        for file in damaged:
            on_note(f"{file.name} is damaged: it is downloaded again")
        self._fetch(damaged, on_progress)
        if still := self._damaged(damaged, on_progress):
            raise ModelError(
                f"{still[0].name} of {self.checkpoint.repository} arrived damaged: its content is "
                "not what the hub lists; it was removed, try again"
            )
        registry.inspect(self.checkpoint)

    def _is_here(self, file: HubFile) -> bool:
        path = self._path(file)
        return path is not None and path.stat().st_size == file.num_bytes

    def _path(self, file: HubFile) -> Path | None:
        return hub.downloaded_file(*self._source, file.name)

    @property
    def _source(self) -> tuple[str, str]:
        """Hub id and commit."""
        return str(self.checkpoint.repository), str(self.checkpoint.revision)

    def _fetch(self, files: Sequence[HubFile], on_progress: OnProgress) -> None:
        """Download files one by one, so that a signal ends it at once."""
        if not files:
            return
        blobs, num_bytes = hub.blobs_folder(self._source[0]), sum(each.num_bytes for each in files)
        _check_space(blobs, num_bytes)
        for file in files:
            if (path := self._path(file)) is not None:
                hub.discard(path)
        detail = [""]
        with _growth_reported(blobs, num_bytes, detail, on_progress):
            for file in files:
                detail[0] = file.name
                hub.fetch_file(*self._source, file.name)

    def _damaged(self, files: Sequence[HubFile], on_progress: OnProgress) -> list[HubFile]:
        """Files whose content is not what the hub lists; they are removed."""
        total, done, damaged = sum(file.num_bytes for file in files), 0, []
        for file in files:
            path = self._path(file)

            def read(num_bytes: int, name: str = file.name) -> None:
                nonlocal done
                done += num_bytes
                on_progress(Progress("checking", done, total, name))

            if path is None or not file.matches(path, read):
                damaged.append(file)
                if path is not None:
                    hub.discard(path)
        return damaged


class _FilesNamed(Exception):
    """A family has named the files that it reads.

    Attributes:
        files: Their paths in the repository.
    """

    def __init__(self, files: Sequence[str]) -> None:
        super().__init__()
        self.files = files


class _Listing(Checkpoint):
    """A model that names the files that a family asks for, instead of downloading them."""

    def fetch(self, components: Sequence[str], without_weights: Sequence[str] = ()) -> None:
        raise _FilesNamed(self.files(components, without_weights))


def _check_space(folder: Path, num_bytes: int) -> None:
    existing = next(each for each in (folder, *folder.parents) if each.exists())
    free = shutil.disk_usage(existing).free
    if num_bytes + _MARGIN_BYTES > free:
        raise ModelError(
            f"{format_bytes(num_bytes)} are to be downloaded, and {format_bytes(free)} are free in "
            f"{existing}: make room, or name another folder in HF_HOME"
        )


@contextmanager
def _growth_reported(
    folder: Path, total: int, detail: Sequence[str], on_progress: OnProgress
) -> Iterator[None]:
    """Report the bytes by which a folder grows, which is how all versions of huggingface_hub and
    both of its ways of transfer show what has arrived.

    Args:
        folder: The folder.
        total: Bytes by which it will have grown.
        detail: One text, that of the reports; the caller may replace it.
        on_progress: Called with the progress.
    """
    before, ended = _size_of(folder), threading.Event()

    def report() -> None:
        while not ended.wait(_INTERVAL_S):
            done = min(max(0, _size_of(folder) - before), total)
            on_progress(Progress("downloading", done, total, detail[0]))

    thread = threading.Thread(target=report, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
    on_progress(Progress("downloading", total, total))


def _size_of(folder: Path) -> int:
    """Bytes on the disk of the files in a folder; files may come and go."""
    total = 0
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                try:
                    status = entry.stat()
                except FileNotFoundError:
                    continue
                total += min(status.st_size, 512 * status.st_blocks)
    except FileNotFoundError:
        return 0
    return total
