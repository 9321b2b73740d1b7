"""Long videos from diffusion transformers on any number of ranks.

``VideoEngine`` renders ``VideoRequest``; sequence-parallel attention by itself stands in
:mod:`longtake.parallel`.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from longtake.engine import (
        DecodeRequest,
        ParallelConfig,
        Video,
        VideoEngine,
        VideoRequest,
    )

__version__ = "0.1.0"

__all__ = ["DecodeRequest", "ParallelConfig", "Video", "VideoEngine", "VideoRequest", "__version__"]


def __getattr__(name: str) -> Any:
    """Import the engine, and torch with it, once it is asked for."""
    if name in __all__:
        return getattr(importlib.import_module("longtake.engine"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
