"""Converts jobs to the video objects of OpenAI's API."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from longtake.configs.families import holds_mapping
from longtake.pipelines.spec import ModelSpec
from longtake.serve.queue.job_records import JobRecord
from longtake.serve.service.eta import EtaEstimator

_STATUS = {
    "queued": "queued",
    "running": "in_progress",
    "done": "completed",
    "failed": "failed",
    "cancelled": "failed",
}
_SETTINGS = (
    "negative_prompt",
    "num_frames",
    "fps",
    "num_inference_steps",
    "guidance_scale",
    "flow_shift",
    "lora",
    "seed",
    "num_videos",
    "resize_mode",
    "output_type",
    "decode",
)


@dataclass(frozen=True)
class VideoObjects:
    """Converts a server's jobs to video objects, which contain no path of the server.

    Attributes:
        spec: Spec of the served model.
        eta: Estimates of rendering times.
        folder: The server's data folder; removed from error messages.
        keep_s: Seconds between the end of a video and its removal.
    """

    spec: ModelSpec
    eta: EtaEstimator
    folder: Path
    keep_s: float

    def video(self, job: JobRecord, left: Mapping[str, float] | None = None) -> dict[str, Any]:
        """The video object of a job.

        Args:
            job: The job.
            left: Seconds until each unfinished job is done, by id; None: computed here.
        """
        request = job.request
        frames = request.num_frames - self.spec.dropped_frames
        if left is None and not job.ended:
            left = self.eta.seconds_left()
        left_s = left.get(job.id) if left and not job.ended else None
        ended_at = None if job.ended_at is None else int(job.ended_at)
        return {
            "id": job.id,
            "object": "video",
            "model": job.model.partition("@")[0],
            "status": _STATUS[job.state],
            "progress": self.percent(job),
            "created_at": int(job.queued_at),
            "started_at": None if job.started_at is None else int(job.started_at),
            "completed_at": ended_at if job.state == "done" else None,
            "expires_at": None if ended_at is None else int(ended_at + self.keep_s),
            "size": f"{request.width}x{request.height}",
            "seconds": f"{round(frames / request.fps, 3):g}",
            "prompt": request.prompt,
            "error": self.error(job),
            "remixed_from_video_id": None,
            **{name: getattr(request, name) for name in (*_SETTINGS, *self._options)},
            "steps_done": self.steps_done(job),
            "estimated_seconds": None if left_s is None else round(left_s, 1),
        }

    @property
    def _options(self) -> list[str]:
        """The model's own options, except mappings."""
        fields = self.spec.options.model_fields.items()
        return [name for name, field in fields if not holds_mapping(field)]

    def steps_done(self, job: JobRecord) -> int:
        """Number of finished denoising steps, as far as known."""
        if job.state == "done":
            return job.request.num_inference_steps
        return job.steps_done if job.ended else self.eta.current(job)[1]

    def percent(self, job: JobRecord) -> int:
        """Percentage of finished denoising steps; 100 only once the video is done."""
        if job.state == "done":
            return 100
        return min(99, 100 * self.steps_done(job) // job.request.num_inference_steps)

    def error(self, job: JobRecord) -> dict[str, str] | None:
        """Why a job ended without a video; None if it is done or has not ended."""
        if job.state == "cancelled":
            return {"code": "cancelled", "message": "it was cancelled"}
        if job.state != "failed":
            return None
        message = job.error.partition("\n")[0].replace(f"{self.folder}/", "")
        return {"code": "generation_failed", "message": message}
