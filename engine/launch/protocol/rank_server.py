"""The main loop of a rank in a separate process, whichever launcher started it."""

from __future__ import annotations

import contextlib
import traceback

import torch
import torch.distributed as dist

from longtake.engine.job import NO_INPUTS, Job, JobRun
from longtake.engine.launch.process_group import (
    Rendezvous,
    control_group,
    join_group,
    leave_group,
)
from longtake.engine.launch.protocol.deadlines import Deadlines
from longtake.engine.launch.protocol.heartbeat import start_heartbeat
from longtake.engine.launch.protocol.rank_side import RankSide, RankSink, report_failure
from longtake.engine.worker import REFUSED_ON_ALL_RANKS, Worker
from longtake.errors import EngineError, RefusedInputError, Stopped
from longtake.parallel import World
from longtake.pipelines.runtime.progress import Progress

EXIT_REFUSED = 2
EXIT_FAILED = 3


def run_rank(store: dist.Store, heartbeat_store: dist.Store, rendezvous: Rendezvous) -> int:
    """Load the model and render jobs until the engine asks to exit.

    Args:
        store: Connection to the engine's store.
        heartbeat_store: Another connection to it, for heartbeats only.
        rendezvous: Where this rank meets the others.

    Returns:
        The exit code of the process.
    """
    rank = rendezvous.rank
    try:
        _RankServer(RankSide(store, rank), heartbeat_store, rendezvous).serve()
        return 0
    except BaseException as error:
        if not isinstance(error, EngineError):  # its message says all
            traceback.print_exc()
        with contextlib.suppress(Exception):
            report_failure(store, rank, error)
        return EXIT_REFUSED if isinstance(error, RefusedInputError) else EXIT_FAILED


class _RankServer:
    """A rank that renders one job after the other. Creating one joins the group and loads."""

    def __init__(
        self, rank_side: RankSide, heartbeat_store: dist.Store, rendezvous: Rendezvous
    ) -> None:
        self._rank_side = rank_side
        self._rank = rendezvous.rank
        config = rank_side.config
        self._deadlines = Deadlines(config)
        self._progress(Progress("loading", detail="libraries"))
        start_heartbeat(heartbeat_store, self._rank)
        on_gpu = rank_side.device_type == "cuda"
        number = config.devices_by_rank[self._rank]
        device = torch.device("cuda", number) if on_gpu else torch.device("cpu")
        group = join_group(rendezvous, device, config.load_timeout_s)
        world = World(device, group, group, control_group(), timeout_s=config.step_timeout_s)
        self._worker = Worker(config, world, self._progress, rank_side.loras)
        world.any_rank(False)  # wait until all ranks have loaded
        self._deadlines.pause()
        rank_side.report_done([])

    def serve(self) -> None:
        """Render jobs until the engine asks to exit."""
        while (job := self._rank_side.next_job()) is not None:
            self._render(job)
            self._deadlines.pause()
        leave_group()

    def _render(self, job: Job) -> None:
        rank_side = self._rank_side
        inputs = rank_side.inputs_of(job) if self._rank == 0 else NO_INPUTS
        sink = RankSink(rank_side)
        run = JobRun(job, sink, self._progress, inputs, rank_side.stop_requested)
        try:
            reports = self._worker.render(run)
        except (Stopped, *REFUSED_ON_ALL_RANKS) as error:
            rank_side.report_error(error)
        else:
            rank_side.report_done(reports)

    def _progress(self, progress: Progress) -> None:
        self._rank_side.report_progress(progress, self._deadlines.progress(progress))
