"""What this machine has for rendering, and what is amiss: each check looks, or really tries.

A check is a function that yields findings, and a row of ``CHECKS``. What it needs it imports
itself, so that a library that is missing or broken is a finding like any other.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

from longtake.engine.tools.doctor import gpu, host
from longtake.engine.tools.doctor.finding import Asked, Check, Finding, Status, worst
from longtake.errors import LongtakeError, one_line

__all__ = ["CHECKS", "Asked", "Check", "Finding", "Status", "examine", "worst"]

_TORCH = "install torch again, as pytorch.org says"

CHECKS: tuple[Check, ...] = (
    Check("python", host.python, "make an environment with a Python that is supported"),
    Check("libraries", host.libraries, "pip install longtake, or pip install -e . in a checkout"),
    Check("torch", gpu.torch_build, _TORCH),
    Check("cuda", gpu.driver, "update the driver, or install torch for an older CUDA"),
    Check("devices", gpu.devices, _TORCH),
    Check("links", gpu.links, "see what nvidia-smi topo -m says"),
    Check("nccl", gpu.nccl, _TORCH),
    Check("kernels", gpu.kernels, _TORCH),
    Check("memory", host.memory, _TORCH),
    Check("shared memory", host.shared_memory, "mount a tmpfs at /dev/shm"),
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
        "have the loopback interface up (ip link set lo up) and no firewall on 127.0.0.1; between "
        "hosts, name the interface that they share in GLOO_SOCKET_IFNAME",
    ),
    Check(
        "exchange nccl",
        partial(gpu.exchange, "nccl"),
        "see what NCCL says with NCCL_DEBUG=INFO and NCCL_DEBUG_FILE=nccl.%p, and whether "
        "NCCL_P2P_DISABLE=1 helps; in a container, give /dev/shm a GiB",
    ),
)


def examine(asked: Asked) -> Iterator[Finding]:
    """Check one thing after the other; each finding as it is made, the slowest come last.

    A check that raises is a failure, and the next one goes on. What is raised here is Ctrl-C
    alone; processes that a check started have ended then.
    """
    for check in CHECKS:
        try:
            yield from check.run(asked)
        except Exception as error:
            kind = "" if isinstance(error, LongtakeError) else f"{type(error).__name__}: "
            yield Finding(check.name, "failure", f"{kind}{one_line(error)}", check.way_out)
