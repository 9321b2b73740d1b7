"""From a request to a plan, to ranks, to a video."""

from longtake.configs.engine import EngineConfig
from longtake.configs.parallel import ParallelConfig
from longtake.configs.request import ResolvedRequest, VideoRequest
from longtake.engine.engine import VideoEngine
from longtake.engine.video import Metadata, Video
from longtake.pipelines.rendering import Progress

__all__ = [
    "EngineConfig",
    "Metadata",
    "ParallelConfig",
    "Progress",
    "ResolvedRequest",
    "Video",
    "VideoEngine",
    "VideoRequest",
]
