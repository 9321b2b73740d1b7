"""Which launcher an engine uses by default.

Launchers are imported on use: they import torch, which takes seconds, and an engine refuses a
damaged model before it needs one.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

from longtake.configs.engine import EngineConfig
from longtake.engine.launch.launcher import Launcher
from longtake.engine.torchrun import TorchrunEnvironment

LauncherFactory = Callable[[EngineConfig, str], Launcher]
"""Makes a launcher from a resolved config and a device type, "cpu" or "cuda"; starts nothing."""


def launcher_factory(
    config: EngineConfig,
    torchrun: TorchrunEnvironment | None,
    *,
    isolated: bool,
    scratch: Path | None,
) -> LauncherFactory:
    """The launcher for this process and this number of devices.

    Args:
        config: The engine's configuration, with ``devices`` resolved.
        torchrun: Torchrun's environment, or None.
        isolated: Run even a single rank in a separate process, so that this one survives it.
        scratch: Folder for the ranks' logs; the system's temporary folder if None.
    """
    if torchrun is not None:
        from longtake.engine.launch.joined_group import JoinedGroup

        return partial(JoinedGroup, torchrun=torchrun)
    if config.devices == 1 and not isolated:
        from longtake.engine.launch.in_process import InProcess

        return InProcess
    from longtake.engine.launch.local_processes import LocalProcesses

    return partial(LocalProcesses, scratch=scratch)
