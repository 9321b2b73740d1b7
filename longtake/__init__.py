"""Renders videos with diffusion transformers on any number of ranks.

    from longtake import VideoEngine

    if __name__ == "__main__":
        with VideoEngine.from_pretrained("path/or/id", devices=2) as engine:
            video = engine.generate(prompt="a red cat", num_frames=33, seed=7)
            video.save("cat.mp4")

``VideoEngine`` loads a model onto ranks and renders requests.
``VideoRequest`` describes a video: prompt, size, steps, seed, ...
``DecodeRequest`` describes how latents become frames.
``ParallelConfig`` holds the degrees of parallelism.
``Video`` is the result: frames, latents and metadata.

Sequence-parallel attention by itself is in :mod:`longtake.parallel`, exceptions are in
:mod:`longtake.errors`. Names are imported on first use.
"""

from __future__ import annotations

from longtake.version import __version__

TYPE_CHECKING = False  # importing typing takes 8 ms, and signals are not handled yet
if TYPE_CHECKING:
    from longtake.configs.parallel import ParallelConfig
    from longtake.configs.request import DecodeRequest, VideoRequest
    from longtake.engine.engine import VideoEngine
    from longtake.engine.video import Video

__all__ = ["DecodeRequest", "ParallelConfig", "Video", "VideoEngine", "VideoRequest", "__version__"]

if not TYPE_CHECKING:  # a type checker would accept any name from a module's __getattr__
    import lazy_loader

    # attach, not attach_stub, which imports ast: 6 ms.
    __getattr__, __dir__, _ = lazy_loader.attach(
        __name__,
        submod_attrs={
            "configs.parallel": ["ParallelConfig"],
            "configs.request": ["DecodeRequest", "VideoRequest"],
            "engine.engine": ["VideoEngine"],
            "engine.video": ["Video"],
        },
    )
