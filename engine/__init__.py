"""From a request to a plan, to ranks, to a video. Names are imported on first use.

lazy_loader is not used: it finds names in submodules of the package only, and some of these come
from ``longtake.configs`` and ``longtake.pipelines``.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from longtake.configs.engine import EngineConfig
    from longtake.configs.parallel import ParallelConfig
    from longtake.configs.request import (
        DecodeRequest,
        ResolvedDecode,
        ResolvedRequest,
        VideoRequest,
    )
    from longtake.engine.engine import VideoEngine
    from longtake.engine.metadata import Metadata
    from longtake.engine.video import Video
    from longtake.pipelines.runtime.progress import Progress

__all__ = [
    "DecodeRequest",
    "EngineConfig",
    "Metadata",
    "ParallelConfig",
    "Progress",
    "ResolvedDecode",
    "ResolvedRequest",
    "Video",
    "VideoEngine",
    "VideoRequest",
]

_MODULES = {
    "DecodeRequest": "longtake.configs.request",
    "EngineConfig": "longtake.configs.engine",
    "Metadata": "longtake.engine.metadata",
    "ParallelConfig": "longtake.configs.parallel",
    "Progress": "longtake.pipelines.runtime.progress",
    "ResolvedDecode": "longtake.configs.request",
    "ResolvedRequest": "longtake.configs.request",
    "Video": "longtake.engine.video",
    "VideoEngine": "longtake.engine.engine",
    "VideoRequest": "longtake.configs.request",
}


def __dir__() -> list[str]:
    """Names for ``help`` and completion."""
    return sorted({*globals(), *__all__})


if not TYPE_CHECKING:  # a type checker would accept any name from a module's __getattr__

    def __getattr__(name: str) -> Any:
        """Import a name from the module that defines it."""
        if name in _MODULES:
            return getattr(importlib.import_module(_MODULES[name]), name)
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
