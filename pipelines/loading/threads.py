"""Work that a few threads do, with its results in order."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

import torch

_MOST_THREADS = 8

ResultT = TypeVar("ResultT")


def in_order(tasks: Iterable[Callable[[], ResultT]]) -> Iterator[ResultT]:
    """Run tasks in threads of this process, and yield their results in order.

    One thread waits for a disk while others compute, each with torch's own number of
    threads. A few tasks are taken ahead of the result that is asked for.

    Args:
        tasks: Functions that may run at the same time; in inference mode if the caller is.

    Raises:
        BaseException: That of the first task that has failed; no other one begins then.
    """
    computing = max(1, min(_MOST_THREADS, _num_cores() // torch.get_num_threads()))
    num_threads = computing + 1  # which waits for the disk
    pool = ThreadPoolExecutor(num_threads, thread_name_prefix="longtake-load")
    pending: deque[Future[ResultT]] = deque()
    inference = torch.is_inference_mode_enabled()  # each thread has a mode of its own

    def run(task: Callable[[], ResultT]) -> ResultT:
        with torch.inference_mode(inference):
            return task()

    try:
        for task in tasks:
            pending.append(pool.submit(run, task))
            if len(pending) > num_threads:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)


def _num_cores() -> int:
    return len(os.sched_getaffinity(0))
