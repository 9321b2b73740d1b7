"""Has pictures decoded in processes that can be ended: what strangers sent may never be done."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import threading
from typing import TYPE_CHECKING

import numpy as np

from longtake.engine.media.limited_process import run_limited
from longtake.errors import EngineError, RequestError
from longtake.files.atomic import cause

if TYPE_CHECKING:  # decoders import this module, and no more than they need
    from longtake.pipelines.picture import Pixels

MAX_PIXELS = 40_000_000
"""Of a picture; 8K has 33 million."""
MAX_CPU_S = 5.0
"""For decoding one."""
MAX_MEMORY_BYTES = 2**30
"""For decoding one; its pixels, 3 bytes each, come on top."""

_QUICK_CPU_S = 0.5
_TIMEOUT_S = 120.0
"""On the clock, where the machine has so much else to do."""
_OUT_OF_TIME = -signal.SIGPROF
"""The exit code."""

_quick, _slow = threading.BoundedSemaphore(2), threading.BoundedSemaphore(2)
"""Pictures that are decoded side by side. One that takes more than ``_QUICK_CPU_S`` begins anew
among the slow ones, so that it holds up none of the others."""


def decoded_apart(content: bytes, said: str, cpu_s: float) -> Pixels:
    """What :func:`longtake.engine.media.picture.decoded` returns, in a process of its own.

    Args:
        content: of a picture's file.
        said: what it is called in messages.
        cpu_s: that decoding may take.

    Returns:
        ``[H, W, 3]``, in memory that is given back with the array.

    Raises:
        RequestError: it is no picture that is read, damaged, or takes too much time or memory.
        EngineError: this machine cannot decode it now.
    """
    with open(os.memfd_create("longtake-picture"), "w+b") as shared:
        with _quick:
            ended = _ended(content, shared.fileno(), said, _QUICK_CPU_S)
        if ended.returncode == _OUT_OF_TIME:
            with _slow:
                ended = _ended(content, shared.fileno(), said, cpu_s)
        shape = _shape(ended, said, cpu_s)
        return np.asarray(np.memmap(shared, np.uint8, "c", shape=shape))


def _ended(
    content: bytes, result: int, said: str, cpu_s: float
) -> subprocess.CompletedProcess[bytes]:
    """The process of a decoder, once it has ended."""
    module, limits = "longtake.engine.media.picture_decoder", [str(cpu_s), str(MAX_MEMORY_BYTES)]
    try:
        return run_limited(module, limits, content, _TIMEOUT_S, result)
    except subprocess.TimeoutExpired as error:
        raise EngineError(
            f"{said} was not decoded within {_TIMEOUT_S:g} s, since this machine is busy: try again"
        ) from error
    except OSError as error:
        raise EngineError(f"{said} cannot be decoded here: {cause(error)}") from error


def _shape(
    ended: subprocess.CompletedProcess[bytes], said: str, cpu_s: float
) -> tuple[int, int, int]:
    """The shape of the pixels that a decoder wrote, if it did."""
    code = ended.returncode
    if code > 0:
        lines = ended.stderr.decode(errors="replace").split("\n")
        last = next(filter(None, reversed(lines)), f"exit code {code}")
        raise EngineError(f"{said} cannot be decoded here: {last}")
    if code == _OUT_OF_TIME:
        reason = f"takes more than {cpu_s:g} s to decode: save it as a baseline JPEG or PNG"
    elif code < 0:
        reason = f"ends its decoder ({signal.strsignal(-code)}): save it again"
    else:
        answer = json.loads(ended.stdout)
        if "shape" in answer:
            height, width, channels = answer["shape"]
            return height, width, channels
        reason = answer["refused"]
    raise RequestError(f"{said} {reason}")
