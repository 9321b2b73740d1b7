"""Restarts ranks that die, on the same devices, or without a device that keeps failing."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from longtake.configs.engine import EngineConfig
from longtake.configs.parallel import ParallelConfig
from longtake.configs.request import ResolvedRequest
from longtake.engine.engine import VideoEngine
from longtake.engine.media.sinks import Sink
from longtake.engine.media.snapshot import SnapshotPlan
from longtake.engine.metadata import Metadata
from longtake.errors import EngineError, LayoutError, RankError, RefusedInputError, Stopped
from longtake.pipelines.runtime.progress import OnProgress, StopRequested, never

_FAILED_STARTS_PER_DEVICE = 2
"""Failed starts due to one device before it is excluded."""
_FAILED_STARTS = 3
"""Consecutive failed starts that no single device caused before giving up."""
_FAULTS_PER_DEVICE = 3
"""Consecutive renderings of different requests that fail on one device before it is excluded."""
_FIRST_WAIT_S = 0.5
_LONGEST_WAIT_S = 30.0


class Supervisor:
    """Renders requests on a group of ranks, and restarts the ranks when they die.

    A failed rendering is not retried: the caller decides, and knows its snapshot.

    Args:
        config: The engine's configuration.
        scratch: Folder for the ranks' logs.
        note: Called with a line about each failed start and excluded device.
        wait: Waits for a number of seconds; may return early.
        requests: Requests that are known, for which weights are placed; the model's defaults count
            if there are none.
        engines: Engines that share this host.

    Raises:
        As :class:`VideoEngine`.

    Attributes:
        starts: Number of starts of the ranks, including failed ones, but not those that follow a
            requested stop.
    """

    def __init__(
        self,
        config: EngineConfig,
        scratch: Path,
        note: Callable[[str], None],
        wait: Callable[[float], object] = time.sleep,
        requests: Sequence[ResolvedRequest] = (),
        engines: int = 1,
    ) -> None:
        self._scratch = scratch
        self._note = note
        self._wait = wait
        self._requests, self._engines = requests, engines
        self._devices = list(config.devices_by_rank)
        self._config = config
        self._engine = self._make_engine()
        self._failed_starts = dict.fromkeys(self._devices, 0)
        self._faults: list[tuple[int, ResolvedRequest]] = []
        self._stopped_on_request = False
        self.starts = 0

    @property
    def engine(self) -> VideoEngine:
        """The current engine; excluding a device replaces it."""
        return self._engine

    @property
    def devices(self) -> tuple[int, ...]:
        """Numbers of the devices in use."""
        return tuple(self._devices)

    def start(self, on_progress: OnProgress, stop_requested: StopRequested = never) -> None:
        """Start the ranks unless they run, on as many devices as possible.

        Raises:
            RefusedInputError: The model cannot be loaded.
            EngineError: No ranks can be started.
            Stopped: ``stop_requested`` returned true.
        """
        failed, wait_s = 0, _FIRST_WAIT_S
        while True:
            if stop_requested():
                raise Stopped("stop requested")
            try:
                self.starts += not (self._engine.running or self._stopped_on_request)
                self._stopped_on_request = False
                self._engine.start(on_progress, stop_requested)
                self._failed_starts = dict.fromkeys(self._devices, 0)
                return
            except Stopped:
                self._stopped_on_request = True
                raise
            except RankError as error:
                self._note(f"the ranks did not start: {_first_line(error)}")
                device = None if error.out_of_memory else self._device_of(error)
                if device is None:
                    failed += 1
                else:
                    self._failed_starts[device] += 1
                    if self._failed_starts[device] >= _FAILED_STARTS_PER_DEVICE:
                        self._exclude(device, error)
                        failed = 0
                if failed >= _FAILED_STARTS:
                    raise EngineError(f"no ranks can be started: {error}") from error
                self._wait(wait_s)
                wait_s = min(2 * wait_s, _LONGEST_WAIT_S)

    def render(
        self,
        request: ResolvedRequest,
        sink: Sink,
        on_progress: OnProgress,
        *,
        snapshots: SnapshotPlan | None = None,
        low_memory: bool = False,
        stop_requested: StopRequested = never,
    ) -> Metadata:
        """Render a request once; see :meth:`VideoEngine.render`.

        Raises:
            RankError: A rank died or hung; the next call restarts the ranks.
            As :meth:`VideoEngine.render`, and :meth:`start`.
        """
        self.start(on_progress, stop_requested)
        try:
            metadata = self._engine.render(
                request,
                sink,
                on_progress,
                snapshots=snapshots,
                low_memory=low_memory,
                stop_requested=stop_requested,
            )
        except Stopped:
            self._stopped_on_request = not self._engine.running
            raise
        except RankError as error:
            self._record_fault(error, request)
            raise
        self._faults.clear()
        return metadata

    def close(self) -> None:
        """End the ranks."""
        self._engine.close()

    def _record_fault(self, error: RankError, request: ResolvedRequest) -> None:
        """Exclude a device that has failed with several different requests in a row."""
        device = self._device_of(error)
        if device is None or error.out_of_memory:
            return
        self._faults.append((device, request))
        latest = itertools.takewhile(lambda fault: fault[0] == device, reversed(self._faults))
        requests = {request for _, request in latest}
        if len(requests) >= _FAULTS_PER_DEVICE and len(self._devices) > 1:
            self._exclude(device, error)

    def _device_of(self, error: RankError) -> int | None:
        """The device of the rank that an error blames, if any."""
        rank = error.rank
        return None if rank is None or rank >= len(self._devices) else self._devices[rank]

    def _exclude(self, device: int, error: RankError) -> None:
        """Exclude a device, and continue on the others.

        Raises:
            EngineError: No device is left, or the others cannot be used.
        """
        if len(self._devices) == 1:
            raise EngineError(f"no ranks can be started: {error}") from error
        self._engine.close()
        self._devices.remove(device)
        self._faults.clear()
        self._failed_starts = dict.fromkeys(self._devices, 0)
        try:
            self._engine = self._make_engine()
        except RefusedInputError as refusal:  # e.g. more GPUs have disappeared
            raise EngineError(f"no ranks can be started: {refusal}") from error
        count = len(self._devices)
        self._note(
            f"device {device} is excluded: it failed repeatedly; {count} "
            f"{'is' if count == 1 else 'are'} left"
        )

    def _make_engine(self) -> VideoEngine:
        """An engine on the remaining devices, with the configured degrees if they still fit."""
        config = self._config
        fewer = len(self._devices) < config.devices
        changes: dict[str, Any] = {"devices": len(self._devices)}
        if fewer or config.device_ids is not None:
            changes["device_ids"] = tuple(self._devices)
        config = config.model_copy(update=changes)
        try:
            return self._placed(VideoEngine(config, isolated=True, scratch=self._scratch))
        except LayoutError:
            if not fewer:
                raise
            config = config.model_copy(update={"parallel": ParallelConfig()})
            return self._placed(VideoEngine(config, isolated=True, scratch=self._scratch))

    def _placed(self, engine: VideoEngine) -> VideoEngine:
        """An engine whose weights are placed for the requests that are known."""
        engine.place_weights(self._requests, engines=self._engines)
        return engine


def _first_line(error: BaseException) -> str:
    return str(error).partition("\n")[0]
