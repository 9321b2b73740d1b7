"""A group of ranks that is started again when it dies: on the same devices while they are all
there, else on those that are left."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from longtake.configs.engine import EngineConfig
from longtake.configs.parallel import ParallelConfig
from longtake.configs.request import ResolvedRequest
from longtake.engine.engine import VideoEngine
from longtake.engine.media.snapshot import SnapshotPlan
from longtake.engine.sinks import Sink
from longtake.engine.video import Metadata
from longtake.errors import EngineError, LayoutError, RankError, RefusedInputError, Stopped
from longtake.pipelines.progress import OnProgress, StopRequested, never

_STARTS_A_DEVICE = 2
"""Starts that one device may spoil before the others go on without it."""
_STARTS_OF_ALL = 3
"""Starts in a row that fail for no one device's fault before it is given up."""
_FAULTS_A_DEVICE = 3
"""Renderings in a row that end at one device, each another, before the others go on without it."""
_FIRST_WAIT_S = 0.5
_LONGEST_WAIT_S = 30.0


class Supervisor:
    """Renders one request after the other on a group of ranks, and keeps the group going.

    It does not try a rendering again: that is up to the caller, who knows its snapshot.

    Args:
        config: the model and the ranks to begin with.
        scratch: folder for what ranks print.
        say: told, in a line, what became of the ranks.
        wait: for so many seconds, or until there is no need to.

    Raises:
        As :class:`VideoEngine`.

    Attributes:
        starts: of the ranks so far, those that failed included; not those after ranks that were
            ended because a rendering was to stop.
    """

    def __init__(
        self,
        config: EngineConfig,
        scratch: Path,
        say: Callable[[str], None],
        wait: Callable[[float], object] = time.sleep,
    ) -> None:
        self._scratch = scratch
        self._say = say
        self._wait = wait
        self._devices = list(config.devices_by_rank)
        self._asked = config
        self._engine = self._made()
        self._spoiled_starts = dict.fromkeys(self._devices, 0)
        self._faults: list[tuple[int, ResolvedRequest]] = []
        self._ended_as_asked = False
        self.starts = 0

    @property
    def engine(self) -> VideoEngine:
        """What renders at the moment; another one once devices are left out."""
        return self._engine

    @property
    def devices(self) -> tuple[int, ...]:
        """The numbers of those that are left."""
        return tuple(self._devices)

    def start(self, on_progress: OnProgress, stop_requested: StopRequested = never) -> None:
        """Start the ranks, if they do not run, on as many devices as can be had.

        Raises:
            RefusedInputError: the model cannot be loaded.
            EngineError: no ranks can be started.
            Stopped: it was requested.
        """
        failed, wait_s = 0, _FIRST_WAIT_S
        while True:
            if stop_requested():
                raise Stopped("it was told to stop")
            try:
                self.starts += not (self._engine.running or self._ended_as_asked)
                self._ended_as_asked = False
                self._engine.start(on_progress, stop_requested)
                self._spoiled_starts = dict.fromkeys(self._devices, 0)
                return
            except Stopped:
                self._ended_as_asked = True
                raise
            except RankError as error:
                self._say(f"the ranks did not start: {_first_line(error)}")
                device = None if error.out_of_memory else self._device_of(error)
                if device is None:
                    failed += 1
                else:
                    self._spoiled_starts[device] += 1
                    if self._spoiled_starts[device] >= _STARTS_A_DEVICE:
                        self._leave_out(device, error)
                        failed = 0
                if failed >= _STARTS_OF_ALL:
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
            RankError: a rank died; the next call starts them again.
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
            self._ended_as_asked = not self._engine.running
            raise
        except RankError as error:
            self._blame(error, request)
            raise
        self._faults.clear()
        return metadata

    def close(self) -> None:
        """End the ranks."""
        self._engine.close()

    def _blame(self, error: RankError, request: ResolvedRequest) -> None:
        """Leave out a device that was the first to fail again and again, whatever it rendered."""
        device = self._device_of(error)
        if device is None or error.out_of_memory:
            return
        self._faults.append((device, request))
        own = list(itertools.takewhile(lambda each: each[0] == device, reversed(self._faults)))
        requests = {each for _, each in own}
        if len(requests) >= _FAULTS_A_DEVICE and len(self._devices) > 1:
            self._leave_out(device, error)

    def _device_of(self, error: RankError) -> int | None:
        rank = error.rank
        return None if rank is None or rank >= len(self._devices) else self._devices[rank]

    def _leave_out(self, device: int, error: RankError) -> None:
        """Go on without a device."""
        if len(self._devices) == 1:
            raise EngineError(f"no ranks can be started: {error}") from error
        self._engine.close()
        self._devices.remove(device)
        self._faults.clear()
        self._spoiled_starts = dict.fromkeys(self._devices, 0)
        try:
            self._engine = self._made()
        except RefusedInputError as refusal:  # GPUs that are gone altogether, say
            raise EngineError(f"no ranks can be started: {refusal}") from error
        count = len(self._devices)
        self._say(
            f"device {device} is left out: it failed again and again; {count} "
            f"{'is' if count == 1 else 'are'} left"
        )

    def _made(self) -> VideoEngine:
        """An engine on the devices that are left; in the degrees asked for, if they fit."""
        config, named = self._asked, self._asked.device_ids is not None
        less = len(self._devices) < config.devices
        changes: dict[str, Any] = {"devices": len(self._devices)}
        if named or less:
            changes["device_ids"] = tuple(self._devices)
        config = config.model_copy(update=changes)
        try:
            return VideoEngine(config, isolated=True, scratch=self._scratch)
        except LayoutError:
            if not less:
                raise
            free = ParallelConfig(shard_weights=config.parallel.shard_weights)
            config = config.model_copy(update={"parallel": free})
            return VideoEngine(config, isolated=True, scratch=self._scratch)


def _first_line(error: BaseException) -> str:
    return str(error).partition("\n")[0]
