"""What one rank executes: load the model, render what it is told to, report.

``python -m longtake.engine.worker`` is a rank that a launcher started on this machine.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import resource
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable
from dataclasses import asdict, dataclass
from datetime import timedelta
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import psutil
import torch
import torch.distributed as dist
from pydantic import BaseModel

from longtake.configs.engine import EngineConfig
from longtake.configs.request import ResolvedRequest
from longtake.engine.channel import Mailbox
from longtake.engine.deadlines import Deadlines
from longtake.errors import EngineError, PeerLostError, RefusedInputError, Stopped, one_line
from longtake.parallel import ParallelDims, World
from longtake.pipelines import registry
from longtake.pipelines.checkpoint import Checkpoint
from longtake.pipelines.rendering import OnProgress, Progress, decode_videos, render_latents

logger = logging.getLogger(__name__)

Array = npt.NDArray[np.float32]

EXIT_REFUSED = 2
EXIT_FAILED = 3


class Job(BaseModel):
    """One request and the layout that it runs in; travels to the ranks as JSON."""

    request: ResolvedRequest
    cfg_degree: int
    ring_degree: int
    ulysses_degree: int

    @classmethod
    def of(cls, request: ResolvedRequest, dims: ParallelDims) -> Job:
        """A job of a layout."""
        return cls(
            request=request,
            cfg_degree=dims.cfg_degree,
            ring_degree=dims.ring_degree,
            ulysses_degree=dims.ulysses_degree,
        )

    @property
    def dims(self) -> ParallelDims:
        """The layout."""
        return ParallelDims(
            cfg_degree=self.cfg_degree,
            ring_degree=self.ring_degree,
            ulysses_degree=self.ulysses_degree,
        )


@dataclass
class RankReport:
    """What one rank measured in one rendering.

    Attributes:
        seconds: of each stage.
        bytes_sent: to other ranks, by stage.
        peak_memory_bytes: of the GPU, or of the process; since it started.
    """

    rank: int
    device: str
    seconds: dict[str, float]
    bytes_sent: dict[str, int]
    peak_memory_bytes: int


class Sink(Protocol):
    """Where a rendering goes."""

    def latents(self, latents: Array) -> None:
        """Take the latents of all videos, ``[B, C, F, H, W]``."""

    def frame(self, video: int, index: int, frame: Array) -> None:
        """Take one frame, ``[height, width, 3]`` in [0, 1]; frames come in order."""


class Worker:
    """A loaded model on one rank.

    Args:
        config: the same on all ranks.
        world: all ranks.
        on_progress: called on this rank.
    """

    def __init__(self, config: EngineConfig, world: World, on_progress: OnProgress) -> None:
        self._world = world
        self._pipeline = registry.load(
            Checkpoint.open(config.model),
            world,
            dtype=dtype_of(config, world.device),
            kernel=config.attention_kernel,
            shard_weights=config.parallel.shard_weights,
            on_component=lambda name: on_progress(Progress("loading", detail=name)),
        )

    def render(
        self,
        job: Job,
        sink: Sink,
        on_progress: OnProgress,
        stop_requested: Callable[[], bool],
    ) -> list[RankReport]:
        """Render on all ranks together; rank 0 fills the sink.

        Returns:
            What each rank measured.

        Raises:
            RefusedInputError: on all ranks alike; they can go on with another job.
            Stopped: likewise.
            PeerLostError: another rank died or was silent for too long.
        """
        world, request = self._world, job.request
        rendered = render_latents(
            self._pipeline,
            request,
            job.dims,
            world,
            on_progress=on_progress,
            stop_requested=stop_requested,
        )
        report = rendered.report
        own = RankReport(
            world.rank, str(world.device), report.seconds, report.bytes_sent, peak_memory_bytes()
        )
        reports = [RankReport(**each) for each in world.gather_json(asdict(own))]
        if world.rank == 0:
            sink.latents(rendered.latents.cpu().numpy())
            if request.output_type == "frames":
                videos = decode_videos(self._pipeline, rendered, request, on_progress=on_progress)
                for video, frames in enumerate(videos):
                    for index, frame in enumerate(frames):
                        if stop_requested():
                            raise Stopped("stopped between frames")
                        sink.frame(video, index, frame.numpy())
            reports[0].peak_memory_bytes = peak_memory_bytes()
            reports[0].seconds = report.seconds
        return reports


def dtype_of(config: EngineConfig, device: torch.device) -> torch.dtype:
    """The dtype of weights and activations."""
    if config.dtype == "auto":
        return torch.bfloat16 if device.type == "cuda" else torch.float32
    dtype: torch.dtype = getattr(torch, config.dtype)
    return dtype


def peak_memory_bytes() -> int:
    """The most memory in use since this process started: of its GPU, or its own."""
    if torch.cuda.is_initialized():
        return torch.cuda.max_memory_allocated()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def join_group(
    store: dist.Store | None, device: torch.device, rank: int, world_size: int, timeout_s: float
) -> dist.ProcessGroup:
    """Make the process group of all ranks; it takes tensors of the CPU and of the device.

    Args:
        store: None finds torchrun's.

    Raises:
        EngineError: the others cannot be met.
    """
    on_gpu = device.type == "cuda"
    if on_gpu:
        torch.cuda.set_device(device)
    try:
        dist.init_process_group(
            "cpu:gloo,cuda:nccl" if on_gpu else "gloo",
            store=store,
            rank=rank if store else -1,
            world_size=world_size if store else -1,
            timeout=timedelta(seconds=timeout_s),
            device_id=device if on_gpu else None,
        )
    except (RuntimeError, ValueError) as error:
        address = ":".join(os.environ.get(f"MASTER_{part}", "?") for part in ("ADDR", "PORT"))
        raise EngineError(
            f"rank {rank} of {world_size} cannot meet the others at {address}: check that the port "
            f"is free and that all ranks were started ({one_line(error)[:200]})"
        ) from error
    group = dist.group.WORLD
    assert group is not None
    return group


class _MailSink:
    """Sends a rendering to the engine."""

    def __init__(self, mailbox: Mailbox) -> None:
        self._mailbox = mailbox

    def latents(self, latents: Array) -> None:
        self._send({"kind": "latents"}, latents)

    def frame(self, video: int, index: int, frame: Array) -> None:
        self._send({"kind": "frame", "video": video, "index": index}, frame)

    def _send(self, message: dict[str, Any], array: Array) -> None:
        payload = np.ascontiguousarray(array, dtype=np.float32).tobytes()
        self._mailbox.post({**message, "shape": array.shape}, payload, max_unread=32)


class _LocalRank:
    """One rank that waits for jobs on the engine's store."""

    def __init__(self, store: dist.Store, rank: int, world_size: int) -> None:
        self._store = store
        self._rank = rank
        self._config = EngineConfig.model_validate_json(store.get("config"))
        self._deadlines = Deadlines(self._config)
        self._mailbox = Mailbox(store, "mail")
        self._jobs = Mailbox(store, "jobs", keep=True)
        self._progress(Progress("loading", detail="libraries"))
        on_gpu = store.get("device") == b"cuda"
        device = torch.device("cuda", rank) if on_gpu else torch.device("cpu")
        group = join_group(
            dist.PrefixStore("ranks", store), device, rank, world_size, self._config.load_timeout_s
        )
        world = World(device, group, group, timeout_s=self._config.step_timeout_s)
        self._worker = Worker(self._config, world, self._progress)
        world.any(False)  # all have loaded
        self._deadlines.pause()
        if rank == 0:
            self._mailbox.post({"kind": "ready"})

    def serve(self) -> None:
        """Render until told to end."""
        while True:
            read = self._jobs.read(timeout_s=1.0)
            if read is None:
                continue
            message = read[0]
            if message["kind"] == "exit":
                break
            self._render(Job.model_validate(message["job"]), f"stop/{message['number']}")
            self._deadlines.pause()
        dist.barrier()  # without it gloo's ranks abort at exit now and then
        dist.destroy_process_group()

    def _render(self, job: Job, stop_key: str) -> None:
        first = self._rank == 0
        try:
            reports = self._worker.render(
                job,
                _MailSink(self._mailbox),
                self._progress,
                lambda: first and bool(self._store.check([stop_key])),
            )
            end: dict[str, Any] = {"kind": "done", "reports": [asdict(each) for each in reports]}
        except Stopped as error:
            end = {"kind": "stopped", "text": str(error)}
        except RefusedInputError as error:
            end = {"kind": "refused", "type": type(error).__name__, "text": str(error)}
        if first:
            self._mailbox.post(end)

    def _progress(self, progress: Progress) -> None:
        timeout_s = self._deadlines.progress(progress)
        state = {**asdict(progress), "timeout_s": timeout_s, "at": time.time()}
        self._store.set(f"state/{self._rank}", json.dumps(state))
        if self._rank == 0:
            self._mailbox.post({"kind": "progress", **asdict(progress)})


def _end_with_parent(pid: int) -> None:
    """End this process within a second of its parent's end, whatever it is doing."""
    parent = psutil.Process(pid)
    while True:
        time.sleep(0.5)
        with contextlib.suppress(psutil.Error):
            if parent.is_running() and parent.status() != psutil.STATUS_ZOMBIE:
                continue
        os._exit(EXIT_FAILED)


def main() -> int:
    """Run one rank that a launcher on this machine started; returns its exit code."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the engine's to hear
    rank, world_size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    parent_pid = int(os.environ["LONGTAKE_PARENT"])
    threading.Thread(target=_end_with_parent, args=(parent_pid,), daemon=True).start()
    logging.basicConfig(level=logging.WARNING, format=f"rank {rank} %(levelname)s %(message)s")
    store = dist.TCPStore(
        "127.0.0.1",
        int(os.environ["LONGTAKE_PORT"]),
        is_master=False,
        wait_for_workers=False,
    )
    try:
        _LocalRank(store, rank, world_size).serve()
        return 0
    except BaseException as error:
        traceback.print_exc()
        refused = isinstance(error, RefusedInputError)
        kind = "refused" if refused else "lost" if isinstance(error, PeerLostError) else "failed"
        failure = {"kind": kind, "type": type(error).__name__, "text": one_line(error)}
        with contextlib.suppress(Exception):
            store.set(f"failure/{rank}", json.dumps(failure))
        return EXIT_REFUSED if refused else EXIT_FAILED


if __name__ == "__main__":
    code = main()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)  # a lost peer's backend threads must not hold up the end
