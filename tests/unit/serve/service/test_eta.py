"""Estimates are unknown until a measurement, and include all videos before."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from longtake.configs.commands.serve import ServeConfig
from longtake.configs.engine import EngineConfig
from longtake.errors import RequestError
from longtake.pipelines.runtime.progress import Progress
from longtake.serve.http.request.openai_request import parse_submission
from longtake.serve.page.views import Views
from longtake.serve.queue.job_records import JobRecord
from longtake.serve.service.service import VideoService
from tests.standin import objects


@pytest.fixture
def service(tmp_path: Path) -> Iterator[VideoService]:
    """A service that does not render."""
    made = VideoService(EngineConfig(model="demo"), ServeConfig(data_dir=tmp_path))
    yield made
    made.close()


def created(service: VideoService, **fields: Any) -> JobRecord:
    values = {"prompt": "a", "num_inference_steps": 10, **fields}
    submission = parse_submission(values, {}, service.model.name, service.engine.spec)
    return service.admission.submit(submission)


def estimates(service: VideoService, *jobs: JobRecord) -> list[float | None]:
    found = []
    for job in jobs:
        now = service.store.find(job.id)
        assert now is not None
        found.append(objects(service).video(now)["estimated_seconds"])
    return found


def claimed(service: VideoService) -> JobRecord:
    job = service.store.claims.take(service.model.digest, time.time())
    assert job is not None
    service.progress.state(job.id, "running", "")
    return job


def test_times_are_unknown_before_a_measurement(service: VideoService) -> None:
    jobs = [created(service) for _ in range(2)]
    assert estimates(service, *jobs) == [None, None]
    assert service.eta.seconds_until_room() == 60
    claimed(service)
    assert estimates(service, *jobs) == [None, None]
    assert "Time not known yet for" in words(service)
    views = Views(service, objects(service))
    assert "time left not known yet" in views.status(service.store.find(jobs[1].id))


def words(service: VideoService) -> str:
    return Views(service, objects(service)).estimate({"num_inference_steps": 10})


def test_a_queued_video_includes_all_before_it(service: VideoService) -> None:
    jobs = [created(service) for _ in range(4)]
    service.eta.add_sample(jobs[0].request, {"loading": 9.0, "snapshots": 9.0, "denoising": 100.0})
    assert estimates(service, *jobs) == [100, 200, 300, 400]
    assert "About 100 s" in words(service) or "About 2 min" in words(service)
    service.cancel(jobs[1])
    assert estimates(service, jobs[0], *jobs[2:]) == [100, 200, 300]
    running = claimed(service)
    assert running.id == jobs[0].id
    assert service.eta.seconds_until_room() == pytest.approx(100)
    service.cancel(running)  # it ends within a step
    assert estimates(service, *jobs) == [None, None, 100, 200]
    service.eta.add_sample(jobs[0].request, {"denoising": 1e6})
    service.eta.add_sample(jobs[0].request, {"denoising": 1e6})
    assert service.eta.seconds_until_room() == 600


def test_measured_steps_scale_all_estimates(
    service: VideoService, monkeypatch: pytest.MonkeyPatch
) -> None:
    jobs = [created(service) for _ in range(2)]
    running = claimed(service)
    stages = service.engine.layouts.predicted(running.request).stages
    now = 1000.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    service.progress.progress(running.id, Progress("denoising", 0, 10))
    assert estimates(service, *jobs) == [None, None]
    for step in (1, 2):
        now += 30
        service.progress.progress(running.id, Progress("denoising", step, 10))
    ratio = 300 / stages["denoise"]
    first, second = estimates(service, *jobs)
    assert first == pytest.approx(240 + ratio * stages["decode"], abs=0.1)
    whole = ratio * sum(stages[stage] for stage in ("text", "denoise", "decode"))
    assert first is not None
    assert second == pytest.approx(first + whole, abs=0.1)


def test_videos_of_more_than_an_hour_are_refused_by_default(service: VideoService) -> None:
    assert service.settings.longest_s == 3600
    service.eta.add_sample(created(service).request, {"denoising": 3700.0})
    with pytest.raises(RequestError, match=r"take 3700 s by the plan, and 3600 are allowed \(--lo"):
        created(service)
