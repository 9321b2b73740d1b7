"""From a request to a plan, to ranks, to a video."""

from longtake.configs.engine import EngineConfig
from longtake.configs.parallel import ParallelConfig
from longtake.configs.request import DecodeRequest, ResolvedDecode, ResolvedRequest, VideoRequest
from longtake.engine.engine import VideoEngine
from longtake.engine.video import Metadata, Video
from longtake.pipelines.rendering import Progress

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
