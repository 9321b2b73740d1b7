"""A rank that was started on this machine: ``python -m longtake.engine.launch.local_rank``.

It waits for jobs on its engine's store, and ends with its engine.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

import numpy as np
import torch
import torch.distributed as dist

from longtake.configs.engine import EngineConfig
from longtake.engine.job import Job
from longtake.engine.launch.channel import Mailbox
from longtake.engine.launch.deadlines import Deadlines
from longtake.engine.launch.heartbeat import give_signs_of_life
from longtake.engine.worker import (
    REFUSED_BY_ALL,
    Array,
    Beside,
    Worker,
    control_group,
    is_out_of_memory,
    join_group,
)
from longtake.errors import PeerLostError, RefusedInputError, Stopped, one_line
from longtake.parallel import World
from longtake.pipelines.progress import Progress
from longtake.pipelines.trace import TracePoint

EXIT_REFUSED = 2
EXIT_FAILED = 3


class _MailSink:
    """Sends a rendering to the engine.

    Args:
        post: takes a message and its bytes.
    """

    def __init__(self, post: Callable[..., None]) -> None:
        self._post = post

    def latents(self, latents: Array) -> None:
        self._send({"kind": "latents"}, latents)

    def frame(self, video: int, index: int, frame: Array) -> None:
        self._send({"kind": "frame", "video": video, "index": index}, frame)

    def traced(self, point: TracePoint, values: Array) -> None:
        # Few at once: a block's output is the size of the whole video in the model's width.
        self._send({"kind": "traced", "point": asdict(point)}, values, max_unread=2)

    def _send(self, message: dict[str, Any], array: Array, max_unread: int = 32) -> None:
        payload = np.ascontiguousarray(array, dtype=np.float32).tobytes()
        self._post({**message, "shape": array.shape}, payload, max_unread)


class _LocalRank:
    """One rank that waits for jobs on the engine's store."""

    def __init__(self, store: dist.Store, rank: int, world_size: int) -> None:
        self._store = store
        self._rank = rank
        self._config = EngineConfig.model_validate_json(store.get("config"))
        self._deadlines = Deadlines(self._config)
        self._mailbox = Mailbox(store, "mail")
        self._jobs = Mailbox(store, "jobs", keep=True)
        self._beside = Mailbox(store, "beside")
        self._job_number = 0  # loading
        self._progress(Progress("loading", detail="libraries"))
        give_signs_of_life(rank, int(os.environ["LONGTAKE_PORT"]))
        on_gpu = store.get("device") == b"cuda"
        number = self._config.devices_by_rank[rank]
        device = torch.device("cuda", number) if on_gpu else torch.device("cpu")
        group = join_group(
            dist.PrefixStore("ranks", store), device, rank, world_size, self._config.load_timeout_s
        )
        world = World(device, group, group, control_group(), timeout_s=self._config.step_timeout_s)
        self._worker = Worker(self._config, world, self._progress)
        world.any_rank(False)  # all have loaded
        self._deadlines.pause()
        if rank == 0:
            self._post({"kind": "done", "reports": []})

    def serve(self) -> None:
        """Render until told to end."""
        while True:
            read = self._jobs.read(timeout_s=1.0)
            if read is None:
                continue
            message = read[0]
            if message["kind"] == "exit":
                break
            self._job_number = message["number"]
            self._render(Job.model_validate(message["job"]))
            self._deadlines.pause()
        dist.barrier()  # without it gloo's ranks abort at exit now and then
        dist.destroy_process_group()

    def _render(self, job: Job) -> None:
        first, stop_key = self._rank == 0, f"stop/{self._job_number}"
        beside = self._read_beside() if first and job.comes_with_array else None
        try:
            reports = self._worker.render(
                job,
                _MailSink(self._post),
                self._progress,
                lambda: first and bool(self._store.check([stop_key])),
                beside,
            )
            end: dict[str, Any] = {"kind": "done", "reports": [asdict(each) for each in reports]}
        except Stopped as error:
            end = {"kind": "stopped", "text": str(error)}
        except REFUSED_BY_ALL as error:
            end = {"kind": "refused", "type": type(error).__name__, "text": str(error)}
        if first:
            self._post(end)

    def _read_beside(self) -> Beside:
        """What the engine sent with this job, before it; of a job that was given up, too."""
        while True:
            read = self._beside.read(timeout_s=1.0)
            if read is not None and read[0]["number"] == self._job_number:
                flat = np.frombuffer(read[1], dtype=np.dtype(read[0]["dtype"]))
                array: Beside = flat.reshape(tuple(read[0]["shape"])).copy()
                return array

    def _progress(self, progress: Progress) -> None:
        timeout_s = self._deadlines.progress(progress)
        state = {**asdict(progress), "timeout_s": timeout_s, "at": time.time()}
        self._store.set(f"state/{self._rank}", json.dumps(state))
        if self._rank == 0:
            self._post({"kind": "progress", **asdict(progress)})

    def _post(self, message: dict[str, Any], payload: bytes = b"", max_unread: int = 0) -> None:
        self._mailbox.post({**message, "number": self._job_number}, payload, max_unread)


def _end_with_parent(pid: int) -> None:
    """End this process within a second of its parent's end, whatever it is doing."""
    while os.getppid() == pid:  # an orphan is given another parent
        time.sleep(0.5)
    os._exit(EXIT_FAILED)


def main() -> int:
    """Run one rank that a launcher on this machine started; returns its exit code."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):  # they are the engine's to hear
        signal.signal(number, signal.SIG_IGN)
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
        lost = isinstance(error, PeerLostError)
        kind = "refused" if refused else "lost" if lost else "failed"
        kind = "out of memory" if is_out_of_memory(error) else kind
        failure = {"kind": kind, "type": type(error).__name__, "text": one_line(error)}
        with contextlib.suppress(Exception):
            store.set(f"failure/{rank}", json.dumps(failure))
        return EXIT_REFUSED if refused else EXIT_FAILED


if __name__ == "__main__":
    code = main()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)  # a lost peer's backend threads must not hold up the end
