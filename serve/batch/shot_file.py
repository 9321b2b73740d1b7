"""A file of shots, checked as a whole: nothing of it is rendered if one row cannot be."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from longtake.configs.engine import EngineConfig
from longtake.engine.outline import EngineOutline, device_type_of
from longtake.errors import LongtakeError, RequestError
from longtake.serve.batch.shot_checker import Shot, ShotChecker
from longtake.serve.batch.shots import InvalidRow, read_shots
from longtake.serve.queue.job_records import JobRecord
from longtake.serve.queue.job_store import JobStore

_MOST_TOLD = 1000
"""Bad rows that a message names."""


class InvalidRowsError(RequestError):
    """A file has rows that cannot be rendered; nothing of it was queued.

    Attributes:
        rows: all of them.
    """

    def __init__(self, source: Path, rows: Sequence[InvalidRow]) -> None:
        lines = "".join(f"\n  {each}" for each in rows[:_MOST_TOLD])
        if len(rows) > _MOST_TOLD:
            lines += f"\n  and {len(rows) - _MOST_TOLD} more"
        count = f"{len(rows)} row{'s' if len(rows) > 1 else ''}"
        super().__init__(f"{source} has {count} that cannot be rendered:{lines}")
        self.rows = list(rows)


class ShotFile:
    """A file of shots, and the folder that they are rendered into. Imports no torch.

    Args:
        source: the file.
        folder: of the outputs.
        engine: that would render them; nothing is loaded.
        defaults: fields of a request that rows need not name.

    Raises:
        RequestError: the folder is a file.
    """

    def __init__(
        self, source: Path, folder: Path, engine: EngineOutline, defaults: dict[str, Any]
    ) -> None:
        if folder.exists() and not folder.is_dir():
            raise RequestError(f"output={str(folder)!r} is a file: name a folder")
        self._source, self._folder = source, folder
        self._checker = ShotChecker(engine, folder, source, defaults)

    def shots(self) -> Iterator[Shot]:
        """All shots, in the order of the file: they can be rendered once the last one came.

        Raises:
            InvalidRowsError: after the last one: some cannot be rendered.
            RequestError: the file cannot be read.
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
        """What the folder's queue holds already; if it cannot be read, that is told once it is
        needed."""
        with suppress(LongtakeError), JobStore(self._folder, read_only=True) as store:
            return {job.id: job for job in store.jobs()}
        return {}


def of_replicas(config: EngineConfig, replicas: int) -> list[EngineConfig]:
    """The engine of each replica: on devices of its own.

    Raises:
        LayoutError: there are not so many devices.
        RequestError: the devices are named by number.
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
