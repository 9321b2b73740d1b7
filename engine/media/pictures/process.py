"""Decodes pictures in limited child processes: decoding untrusted files may never end."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import threading
from typing import TYPE_CHECKING

import numpy as np

from longtake.engine.media.pictures.limited_process import run_limited
from longtake.errors import EngineError, RequestError
from longtake.files.atomic import cause

if TYPE_CHECKING:  # child processes import this module, and as little as possible
    from longtake.pipelines.codec.picture import Pixels

MAX_PIXELS = 40_000_000
"""Limit of a picture; 8K has 33 million."""
MAX_CPU_S = 5.0
"""CPU time limit for one picture."""
MAX_MEMORY_BYTES = 2**30
"""Memory limit for one picture, not counting its decoded pixels of 3 bytes each."""

_QUICK_CPU_S = 0.5
_TIMEOUT_S = 120.0
"""Wall-clock limit, for busy machines."""
_OUT_OF_TIME = -signal.SIGPROF
"""Exit code of a process that used up its CPU time."""

_quick, _slow = threading.BoundedSemaphore(2), threading.BoundedSemaphore(2)
"""Limit the number of concurrent decodes. A picture that takes more than ``_QUICK_CPU_S`` restarts
among the slow ones, so that it does not delay quick ones."""


def decode_in_subprocess(content: bytes, label: str, cpu_s: float) -> Pixels:
    """Decode a picture in a limited child process; see
    :func:`longtake.engine.media.pictures.picture.decode_picture`.

    Args:
        content: The picture file's bytes.
        label: Name of the picture in error messages.
        cpu_s: CPU time limit in seconds.

    Returns:
        Pixels ``[H, W, 3]``; their shared memory is released with the array.

    Raises:
        RequestError: It is damaged, in none of the formats that are read, or exceeds a limit.
        EngineError: This machine cannot decode it now.
    """
    with open(os.memfd_create("longtake-picture"), "w+b") as shared:
        with _quick:
            process = _run_decoder(content, shared.fileno(), label, _QUICK_CPU_S)
        if process.returncode == _OUT_OF_TIME:
            with _slow:
                process = _run_decoder(content, shared.fileno(), label, cpu_s)
        shape = _shape(process, label, cpu_s)
        return np.asarray(np.memmap(shared, np.uint8, "c", shape=shape))


def _run_decoder(
    content: bytes, result: int, label: str, cpu_s: float
) -> subprocess.CompletedProcess[bytes]:
    """Run a decoder until it ends."""
    module, limits = "longtake.engine.media.pictures.decoder", [str(cpu_s), str(MAX_MEMORY_BYTES)]
    try:
        return run_limited(module, limits, content, _TIMEOUT_S, result)
    except subprocess.TimeoutExpired as error:
        raise EngineError(
            f"{label} was not decoded within {_TIMEOUT_S:g} s, since this machine is busy: "
            "try again"
        ) from error
    except OSError as error:
        raise EngineError(f"{label} cannot be decoded here: {cause(error)}") from error


def _shape(
    process: subprocess.CompletedProcess[bytes], label: str, cpu_s: float
) -> tuple[int, int, int]:
    """The shape of the pixels that a decoder wrote.

    Raises:
        RequestError, EngineError: It wrote none.
    """
    code = process.returncode
    if code > 0:
        lines = process.stderr.decode(errors="replace").split("\n")
        last = next(filter(None, reversed(lines)), f"exit code {code}")
        raise EngineError(f"{label} cannot be decoded here: {last}")
    if code == _OUT_OF_TIME:
        reason = f"takes more than {cpu_s:g} s to decode: save it as a baseline JPEG or PNG"
    elif code < 0:
        reason = f"ends its decoder ({signal.strsignal(-code)}): save it again"
    else:
        reply = json.loads(process.stdout)
        if "shape" in reply:
            height, width, channels = reply["shape"]
            return height, width, channels
        reason = reply["refused"]
    raise RequestError(f"{label} {reason}")
