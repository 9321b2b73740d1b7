"""What a server counts and measures, for Prometheus."""

from __future__ import annotations

import time
from collections import Counter as Counts
from collections.abc import Iterator
from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from longtake.engine.video import Metadata
from longtake.serve.queue.job_database import QueueError
from longtake.serve.queue.job_records import JobRecord

if TYPE_CHECKING:
    from longtake.serve.service.service import VideoService

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_JOB_S = (1, 3, 10, 30, 60, 120, 300, 600, 1800, 3600, 7200, 14400, 43200)
_STEP_S = (0.01, 0.03, 0.1, 0.3, 1, 2, 5, 10, 20, 40, 80, 160)
_NOT_STAGES = ("loading", "snapshots")


class Metrics:
    """All metrics of one server, in a registry of its own.

    Args:
        service: whose queue and ranks are looked at whenever the metrics are.
    """

    def __init__(self, service: VideoService) -> None:
        self._registry = CollectorRegistry()
        self._spec = service.engine.spec
        self._requests = Counter(
            "longtake_http_requests",
            "Requests that were answered",
            ("method", "route", "status"),
            registry=self._registry,
        )
        self._waiting = self._histogram("longtake_video_waiting_seconds", "In the queue", _JOB_S)
        self._running = self._histogram("longtake_video_running_seconds", "On the ranks", _JOB_S)
        self._step = self._histogram("longtake_step_seconds", "Mean of a video's steps", _STEP_S)
        self._stage_s = Counter(
            "longtake_stage_seconds",
            "Spent in each stage of videos that were rendered",
            ("stage",),
            registry=self._registry,
        )
        self._bytes = Counter(
            "longtake_communicated_bytes",
            "Sent between ranks, by stage",
            ("stage",),
            registry=self._registry,
        )
        self._tokens = Gauge(
            "longtake_tokens_per_second",
            "Video tokens denoised a second, a step each, of the last video",
            registry=self._registry,
        )
        self._memory = Gauge(
            "longtake_peak_memory_bytes",
            "Most memory that a rank had since it was started",
            ("rank", "device"),
            registry=self._registry,
        )
        self._recoveries = Counter(
            "longtake_recoveries",
            "Videos that went on from a snapshot",
            registry=self._registry,
        )
        self._ended = Counter(
            "longtake_videos",
            "Videos that ended: done, failed or cancelled",
            ("state",),
            registry=self._registry,
        )
        self._registry.register(_OfTheQueue(service))

    def _histogram(self, name: str, text: str, buckets: tuple[float, ...]) -> Histogram:
        return Histogram(name, text, registry=self._registry, buckets=buckets)

    def answered(self, method: str, route: str, status: int) -> None:
        """A request was."""
        self._requests.labels(method, route, str(status)).inc()

    def ended(self, state: str) -> None:
        """A job is done, failed, or was cancelled while it ran."""
        self._ended.labels(state).inc()

    def rendered(self, job: JobRecord, metadata: Metadata) -> None:
        """A job is done."""
        first = metadata.ranks[0]
        started_at = job.started_at or job.queued_at
        self._waiting.observe(max(0.0, started_at - job.queued_at))
        self._running.observe(max(0.0, time.time() - started_at))
        steps = job.request.num_inference_steps - first.steps_before
        denoising_s = metadata.seconds.get("denoising", 0.0)
        if steps and denoising_s:
            self._step.observe(denoising_s / steps)
            tokens = self._spec.grid(job.request).num_tokens * job.request.num_videos
            self._tokens.set(tokens * steps / denoising_s)
        for stage, seconds in metadata.seconds.items():
            if stage not in _NOT_STAGES:
                self._stage_s.labels(stage).inc(seconds)
        self._memory.clear()  # ranks may be fewer now
        for rank in metadata.ranks:
            for stage, sent in rank.bytes_sent.items():
                self._bytes.labels(stage).inc(sent)
            self._memory.labels(str(rank.rank), rank.device).set(rank.peak_memory_bytes)
        if first.steps_before:
            self._recoveries.inc()

    def text(self) -> bytes:
        """All of them, as Prometheus reads them."""
        return generate_latest(self._registry)


class _OfTheQueue(Collector):
    """What is looked at when metrics are asked for."""

    def __init__(self, service: VideoService) -> None:
        self._service = service

    def collect(self) -> Iterator[Metric]:
        usable = self._service.queue.problem is None
        try:
            jobs = self._service.store.unfinished_jobs()
        except QueueError:
            usable = False
        else:
            counts = Counts(job.state for job in jobs if not job.deleted)
            running = counts["running"]
            yield GaugeMetricFamily("longtake_queue_depth", "Videos that wait", counts["queued"])
            yield GaugeMetricFamily("longtake_videos_running", "Videos on the ranks", running)
        yield GaugeMetricFamily(
            "longtake_queue_usable",
            "Whether the queue's file can be read and written",
            float(usable),
        )
        ready = GaugeMetricFamily("longtake_ready", "Whether videos can be rendered")
        ready.add_metric([], float(not self._service.unready))
        yield ready
        restarts = CounterMetricFamily(
            "longtake_rank_restarts", "Starts of the ranks but for the first"
        )
        restarts.add_metric([], self._service.restarts)
        yield restarts
