"""Prometheus metrics of a server."""

from __future__ import annotations

import time
from collections import Counter as Counts
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from longtake.engine.loras.choice import LORAS_STAGE
from longtake.engine.metadata import Metadata
from longtake.pipelines.spec import ModelSpec
from longtake.serve.queue.job_database import QueueError
from longtake.serve.queue.job_records import JobRecord
from longtake.serve.queue.queue_watch import QueueWatch
from longtake.serve.queue.submissions import Submissions
from longtake.serve.runner.stages import UNCOUNTED_STAGES
from longtake.serve.service.ranks_state import RanksState

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_JOB_S = (1, 3, 10, 30, 60, 120, 300, 600, 1800, 3600, 7200, 14400, 43200)
_STEP_S = (0.01, 0.03, 0.1, 0.3, 1, 2, 5, 10, 20, 40, 80, 160)


class Metrics:
    """All metrics of one server, in a registry of its own.

    Args:
        spec: Spec of the served model.
    """

    def __init__(self, spec: ModelSpec) -> None:
        self._spec = spec
        self._registry = CollectorRegistry()
        self._requests = self._counter(
            "longtake_http_requests", "HTTP requests answered", "method", "route", "status"
        )
        self._waiting = self._histogram(
            "longtake_video_waiting_seconds", "Time in the queue", _JOB_S
        )
        self._running = self._histogram(
            "longtake_video_running_seconds", "Time on the ranks", _JOB_S
        )
        self._step = self._histogram(
            "longtake_step_seconds", "Mean time per denoising step of a video", _STEP_S
        )
        self._stage_s = self._counter(
            "longtake_stage_seconds", "Time spent in each stage of rendered videos", "stage"
        )
        self._bytes = self._counter(
            "longtake_communicated_bytes", "Bytes sent between ranks in each stage", "stage"
        )
        self._tokens = self._gauge(
            "longtake_tokens_per_second",
            "Tokens per second and denoising step of the last video",
        )
        self._memory = self._gauge(
            "longtake_peak_memory_bytes",
            "Peak memory of each rank since its start",
            "rank",
            "device",
        )
        self._loras = self._histogram(
            "longtake_lora_exchange_seconds", "Time of exchanging the LoRAs on the ranks", _STEP_S
        )
        self._recoveries = self._counter("longtake_recoveries", "Videos resumed from a snapshot")
        self._ended = self._counter("longtake_videos", "Videos that ended, by final state", "state")

    def _counter(self, name: str, text: str, *labels: str) -> Counter:
        return Counter(name, text, labels, registry=self._registry)

    def _gauge(self, name: str, text: str, *labels: str) -> Gauge:
        return Gauge(name, text, labels, registry=self._registry)

    def _histogram(self, name: str, text: str, buckets: tuple[float, ...]) -> Histogram:
        return Histogram(name, text, registry=self._registry, buckets=buckets)

    def add_state(self, state: ServerState) -> None:
        """Also report the state of the queue and the ranks at the time of each scrape."""
        self._registry.register(_StateCollector(state))

    def count_response(self, method: str, route: str, status: int) -> None:
        """Count a response."""
        self._requests.labels(method, route, str(status)).inc()

    def count_ended(self, state: str) -> None:
        """Count a job that ended on the ranks."""
        self._ended.labels(state).inc()

    def observe_rendered(self, job: JobRecord, metadata: Metadata) -> None:
        """Record the times, bytes and memory of a finished job."""
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
            if stage not in UNCOUNTED_STAGES:
                self._stage_s.labels(stage).inc(seconds)
        if LORAS_STAGE in metadata.seconds:
            self._loras.observe(metadata.seconds[LORAS_STAGE])
        self._memory.clear()  # there may be fewer ranks now
        for rank in metadata.ranks:
            for stage, sent in rank.bytes_sent.items():
                self._bytes.labels(stage).inc(sent)
            self._memory.labels(str(rank.rank), rank.device).set(rank.peak_memory_bytes)
        if first.steps_before:
            self._recoveries.inc()

    def text(self) -> bytes:
        """All metrics in Prometheus' text format."""
        return generate_latest(self._registry)


@dataclass(frozen=True)
class ServerState:
    """State that is read at each scrape.

    Attributes:
        store: The job queue.
        queue_watch: Monitor of the queue's file.
        ranks: State of the ranks.
        unready: Returns why no video can be rendered; empty if the server is ready.
    """

    store: Submissions
    queue_watch: QueueWatch
    ranks: RanksState
    unready: Callable[[], str]


class _StateCollector(Collector):
    """Metrics of the current state."""

    def __init__(self, state: ServerState) -> None:
        self._state = state

    def collect(self) -> Iterator[Metric]:
        usable = self._state.queue_watch.problem is None
        try:
            jobs = self._state.store.unfinished_jobs()
        except QueueError:
            usable = False
        else:
            counts = Counts(job.state for job in jobs if not job.deleted)
            running = counts["running"]
            yield GaugeMetricFamily("longtake_queue_depth", "Queued videos", counts["queued"])
            yield GaugeMetricFamily("longtake_videos_running", "Videos on the ranks", running)
        yield GaugeMetricFamily(
            "longtake_queue_usable",
            "Whether the queue is usable",
            float(usable),
        )
        yield GaugeMetricFamily(
            "longtake_ready", "Whether videos can be rendered", float(not self._state.unready())
        )
        restarts = CounterMetricFamily("longtake_rank_restarts", "Restarts of the ranks")
        restarts.add_metric([], self._state.ranks.restarts)
        yield restarts
