"""A shots file, checked as a whole: nothing is rendered if any row is invalid."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from longtake.configs.engine import EngineConfig
from longtake.engine.resolve.outline import EngineOutline, device_type_of
from longtake.errors import LongtakeError, RequestError
from longtake.serve.batch.shot_checker import Shot, ShotChecker
from longtake.serve.batch.shots import InvalidRow, read_shots
from longtake.serve.queue.job_records import JobRecord
from longtake.serve.queue.job_store import JobStore

_MAX_LISTED = 1000
"""Maximum number of invalid rows that a message lists."""


class InvalidRowsError(RequestError):
    """Some rows of a shots file cannot be rendered. Nothing was queued.

    Attributes:
        rows: All invalid rows.
    """

    def __init__(self, source: Path, rows: Sequence[InvalidRow]) -> None:
        lines = "".join(f"\n  {each}" for each in rows[:_MAX_LISTED])
        if len(rows) > _MAX_LISTED:
            lines += f"\n  and {len(rows) - _MAX_LISTED} more"
        count = f"{len(rows)} row{'s' if len(rows) > 1 else ''}"
        super().__init__(f"{source} has {count} that cannot be rendered:{lines}")
        self.rows = list(rows)


class ShotFile:
    """A shots file and its output folder. Does not import torch.

    Args:
        source: Path of the shots file.
        folder: Output folder.
        engine: Resolves the requests; nothing is loaded.
        defaults: Request fields for rows without them.

    Raises:
        RequestError: The folder is a file.
    """

    def __init__(
        self, source: Path, folder: Path, engine: EngineOutline, defaults: dict[str, Any]
    ) -> None:
        if folder.exists() and not folder.is_dir():
            raise RequestError(f"output={str(folder)!r} is a file: name a folder")
        self._source, self._folder = source, folder
        self._checker = ShotChecker(engine, folder, source, defaults)

    def shots(self) -> Iterator[Shot]:
        """Yield all shots, in the order of the file.

        They may be rendered only if the iteration ends without an error.

        Raises:
            InvalidRowsError: After the last shot, if some rows cannot be rendered.
            RequestError: The file cannot be read.
        """
        rows, bad = read_shots(self._source)
        for each in self._checker.check(rows, self._known_jobs()):
            if isinstance(each, InvalidRow):
                bad.append(each)
            else:
                yield each
        if bad:
            rows_by_line = sorted(dict.fromkeys(bad), key=lambda row: row.line)
            raise InvalidRowsError(self._source, rows_by_line)

    def _known_jobs(self) -> dict[str, JobRecord]:
        """The jobs in the folder's queue, by ID. :class:`Batch` reports errors."""
        with suppress(LongtakeError), JobStore(self._folder, read_only=True) as store:
            return {job.id: job for job in store.jobs()}
        return {}


def replica_configs(config: EngineConfig, replicas: int) -> list[EngineConfig]:
    """The engine configuration of each replica, with its own devices.

    Raises:
        LayoutError: There are too few devices.
        RequestError: ``device_ids`` is set.
    """
    if replicas == 1:
        return [config]
    if config.device_ids is not None:
        raise RequestError(
            f"device_ids with replicas={replicas}, which take the devices in order: leave it out"
        )
    count = config.devices
    configs = [
        config.model_copy(update={"device_ids": tuple(range(count * number, count * (number + 1)))})
        for number in range(replicas)
    ]
    device_type_of(configs[-1])
    return configs
