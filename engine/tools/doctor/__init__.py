"""Checks whether this machine can render, by inspection or by a trial.

A check is a function that yields findings, listed in ``CHECKS``. It imports the libraries it needs
itself, so that a missing or broken one is a finding like any other.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

from longtake.engine.tools.doctor import gpu, host, weights
from longtake.engine.tools.doctor.finding import Check, CheckContext, Finding, Status, worst
from longtake.errors import LongtakeError, one_line

__all__ = ["CHECKS", "CheckContext", "Check", "Finding", "Status", "examine", "worst"]

_TORCH = "reinstall torch as pytorch.org says"

CHECKS: tuple[Check, ...] = (
    Check("python", host.python, "make an environment with a Python that is supported"),
    Check("libraries", host.libraries, "pip install longtake, or pip install -e . in a checkout"),
    Check("torch", gpu.torch_build, _TORCH),
    Check("cuda", gpu.driver, "update the driver, or install torch for an older CUDA"),
    Check("devices", gpu.enough_devices, _TORCH),
    Check("links", gpu.links, "see what nvidia-smi topo -m says"),
    Check("nccl", gpu.nccl, _TORCH),
    Check("kernels", gpu.kernels, _TORCH),
    Check("memory", host.memory, _TORCH),
    Check("shared memory", host.shared_memory, "mount a tmpfs at /dev/shm"),
    Check("host memory", weights.host, "reinstall numpy"),
    Check("swap", weights.swap, "see what free -h says"),
    Check("pinned memory", weights.pinned, _TORCH),
    Check("pcie", weights.pcie, _TORCH),
    Check("disk", weights.disk, "name the model's folder with --model"),
    Check("folder", host.folder, "name another with --folder"),
    Check("hub cache", host.hub_cache, "name another folder in HF_HUB_CACHE"),
    *(
        Check(
            f"encoder {suffix}",
            partial(host.encoder, suffix),
            "pip install --force-reinstall av imageio pillow, or write .npy or a folder of .png",
        )
        for suffix in (".mp4", ".webm", ".gif")
    ),
    Check("port", host.port, "name another with --port, or 0 for any"),
    Check(
        "exchange gloo",
        partial(gpu.exchange, "gloo"),
        "bring up the loopback interface (ip link set lo up) and allow 127.0.0.1 in the firewall; "
        "between hosts, name the interface that they share in GLOO_SOCKET_IFNAME",
    ),
    Check(
        "exchange nccl",
        partial(gpu.exchange, "nccl"),
        "see NCCL's log with NCCL_DEBUG=INFO and NCCL_DEBUG_FILE=nccl.%p, and try whether "
        "NCCL_P2P_DISABLE=1 helps; in a container, give /dev/shm a GiB",
    ),
)


def examine(context: CheckContext) -> Iterator[Finding]:
    """Run all checks in turn, the slowest last, and yield each finding as it is made.

    A check that raises yields a failure, and the next one runs. Only Ctrl-C is raised; processes
    that a check started have ended by then.
    """
    for check in CHECKS:
        try:
            yield from check.run(context)
        except Exception as error:
            kind = "" if isinstance(error, LongtakeError) else f"{type(error).__name__}: "
            yield Finding(check.name, "failure", f"{kind}{one_line(error)}", check.way_out)
