"""Renders videos with diffusion transformers on any number of ranks.

    from longtake import VideoEngine

    if __name__ == "__main__":
        with VideoEngine.from_pretrained("path/or/id", devices=2) as engine:
            video = engine.generate(prompt="a red cat", num_frames=33, seed=7)
            video.save("cat.mp4")

``VideoEngine`` loads a model onto ranks and renders requests.
``VideoRequest`` is what a user may ask for: prompt, size, steps, seed, ...
``DecodeRequest`` is the part of it that says how latents become frames.
``ParallelConfig`` holds the degrees of parallelism.
``Video`` is what comes out: frames, latents and metadata.

Sequence-parallel attention by itself is in :mod:`longtake.parallel`, exceptions are in
:mod:`longtake.errors`. All of this is imported once it is used.
"""

from __future__ import annotations

TYPE_CHECKING = False  # without importing typing: signals are not taken yet
if TYPE_CHECKING:
    from typing import Any

    from longtake.engine import DecodeRequest, ParallelConfig, Video, VideoEngine, VideoRequest

__version__ = "0.1.0"

__all__ = ["DecodeRequest", "ParallelConfig", "Video", "VideoEngine", "VideoRequest", "__version__"]


def __dir__() -> list[str]:
    """What there is, for ``help`` and completion."""
    return sorted({*globals(), *__all__})


if not TYPE_CHECKING:  # a type checker would take any name for one that is there

    def __getattr__(name: str) -> Any:
        """Import the engine, and torch with it, once it is asked for."""
        import importlib

        if name in __all__:
            return getattr(importlib.import_module("longtake.engine"), name)
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
