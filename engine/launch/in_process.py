"""One rank in the calling process."""

from __future__ import annotations

import gc

import torch

from longtake.configs.engine import EngineConfig
from longtake.engine.job import JobRun
from longtake.engine.launch.launcher import Launcher
from longtake.engine.loras.choice import NO_LORAS, LoraChoice
from longtake.engine.memory_use import is_out_of_memory
from longtake.engine.rank_report import RankReport
from longtake.engine.worker import Worker
from longtake.errors import EngineError, LongtakeError, one_line
from longtake.parallel import World
from longtake.pipelines.runtime.progress import OnProgress, StopRequested, never


class InProcess(Launcher):
    """Runs the only rank in this process."""

    def __init__(self, config: EngineConfig, device_type: str) -> None:
        self._config = config
        name = f"cuda:{config.devices_by_rank[0]}" if device_type == "cuda" else device_type
        self._world = World(torch.device(name))
        self._worker: Worker | None = None

    def start(
        self,
        on_progress: OnProgress,
        stop_requested: StopRequested = never,
        loras: LoraChoice = NO_LORAS,
    ) -> None:
        """Load the model in this process."""
        self._worker = Worker(self._config, self._world, on_progress, loras)

    def render(self, run: JobRun) -> list[RankReport]:
        """Render in this process; running out of memory raises EngineError."""
        assert self._worker is not None
        try:
            return self._worker.render(run)
        except (RuntimeError, MemoryError) as error:
            if isinstance(error, LongtakeError) or not is_out_of_memory(error):
                raise
            request = run.job.request
            raise EngineError(
                f"out of memory with {request.num_videos} x {request.num_frames} frames of "
                f"{request.width}x{request.height}: ask for fewer or smaller ones, or for more "
                f"devices ({one_line(error)[:200]})"
            ) from error

    def close(self) -> None:
        """Release the model and return a GPU's cached memory."""
        self._worker = None
        gc.collect()
        if torch.cuda.is_initialized():
            torch.cuda.empty_cache()
