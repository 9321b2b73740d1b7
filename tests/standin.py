"""A service without ranks: a stand-in renders gray frames at once."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from starlette.testclient import TestClient

from longtake.configs.commands.serve import ServeConfig
from longtake.configs.engine import EngineConfig
from longtake.configs.snapshot import SnapshotConfig
from longtake.engine.engine import VideoEngine
from longtake.engine.metadata import Metadata
from longtake.engine.rank_report import RankReport
from longtake.parallel import ParallelDims
from longtake.pipelines.runtime.progress import Progress
from longtake.serve import server
from longtake.serve.http.video_object import VideoObjects
from longtake.serve.server import build_application, build_service
from longtake.serve.service.service import VideoService


def objects(service: VideoService) -> VideoObjects:
    """The video objects that a service sends to its clients."""
    return VideoObjects(service.engine.spec, service.eta, service.folder, service.settings.keep_s)


class _Running(VideoEngine):
    running = True


class GrayRanks:
    """Replaces the supervisor.

    Attributes:
        hold: Whether renderings wait until this is false.
        deaf: Whether a waiting rendering ignores requests to stop.
        fails: Error that renderings raise, or None.
    """

    hold = deaf = False
    fails: Exception | None = None

    def __init__(self, config: EngineConfig, *rest: Any) -> None:
        self.engine = _Running(config, isolated=True)
        self.devices, self.starts = (0,), 1

    def start(self, on_progress: Any, stop_requested: Any) -> None:
        """Do nothing."""

    def render(
        self, request: Any, sink: Any, on_progress: Any, *, stop_requested: Any, **rest: Any
    ) -> Metadata:
        """Render gray frames."""
        on_progress(Progress("text"))
        for step in range(min(request.num_inference_steps, 100) + 1):
            on_progress(Progress("denoising", step, request.num_inference_steps))
        while type(self).hold:
            if not type(self).deaf:
                on_progress(Progress("denoising", 1, request.num_inference_steps))
            time.sleep(0.01)
        if (error := type(self).fails) is not None:
            raise error
        frame = np.full((request.height, request.width, 3), 0.5, np.float32)
        sink.latents(np.zeros((1, 1, 1, 1, 1), np.float32))
        for video in range(request.num_videos):
            for index in range(self.engine.num_frames_of(request)):
                sink.frame(video, index, frame)
        report = RankReport(0, "cpu", "none", {}, {"denoising": 7}, 1, 2**20)
        seconds = {"loading": 0.0, "denoising": 0.01}
        frames = self.engine.num_frames_of(request)
        return Metadata(request, self.engine.config, ParallelDims(), seconds, [report], frames)

    def close(self) -> None:
        """Do nothing."""


@contextmanager
def gray_server(
    monkeypatch: pytest.MonkeyPatch,
    folder: Path,
    model: str = "demo",
    lora_folder: Path | None = None,
    **settings: Any,
) -> Iterator[tuple[TestClient, VideoService]]:
    """A client of the application, and its service."""
    monkeypatch.setattr(server, "Supervisor", GrayRanks)
    GrayRanks.hold = GrayRanks.deaf = False
    GrayRanks.fails = None
    config = ServeConfig(**{"data_dir": folder, "page": False, **settings})
    service = build_service(
        EngineConfig(model=model, lora_folder=lora_folder), config, SnapshotConfig()
    )
    with TestClient(
        build_application(service, config),
        base_url="http://127.0.0.1:8000",
        raise_server_exceptions=False,
        follow_redirects=False,
    ) as client:
        yield client, service  # leaving the client stops the service
