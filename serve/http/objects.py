"""Jobs in the shape that clients of OpenAI's videos API know."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from longtake.serve.queue.job_records import JobRecord
from longtake.serve.service.service import VideoService

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
    "true_cfg_scale",
    "flow_shift",
    "seed",
    "num_videos",
    "i2v_mode",
    "resize_mode",
    "output_type",
    "decode",
)


def name_of(job: JobRecord) -> str:
    """The model that was asked for, without what tells it from others of its name."""
    return job.model.partition("@")[0]


def steps_done(service: VideoService, job: JobRecord) -> int:
    """Finished steps of a job, as far as is known."""
    if job.state == "done":
        return job.request.num_inference_steps
    return job.steps_done if job.ended else service.pace.standing(job)[1]


def progress_of(service: VideoService, job: JobRecord) -> int:
    """Percent of the steps that are finished; 100 only once the video is there."""
    if job.state == "done":
        return 100
    return min(99, 100 * steps_done(service, job) // job.request.num_inference_steps)


def video_object(
    service: VideoService, job: JobRecord, left: Mapping[str, float] | None = None
) -> dict[str, Any]:
    """A job as clients see it. No path of the server is in it.

    Args:
        left: seconds until jobs are done; looked up if None.
    """
    request = job.request
    frames = service.engine.num_frames_of(request)
    if left is None and not job.ended:
        left = service.pace.seconds_left()
    left_s = left.get(job.id) if left and not job.ended else None
    ended_at = None if job.ended_at is None else int(job.ended_at)
    return {
        "id": job.id,
        "object": "video",
        "model": name_of(job),
        "status": _STATUS[job.state],
        "progress": progress_of(service, job),
        "created_at": int(job.queued_at),
        "started_at": None if job.started_at is None else int(job.started_at),
        "completed_at": ended_at if job.state == "done" else None,
        "expires_at": None if ended_at is None else int(ended_at + service.settings.keep_s),
        "size": f"{request.width}x{request.height}",
        "seconds": f"{round(frames / request.fps, 3):g}",
        "prompt": request.prompt,
        "error": error_of(service, job),
        "remixed_from_video_id": None,
        **{name: getattr(request, name) for name in _SETTINGS},
        "steps_done": steps_done(service, job),
        "estimated_seconds": None if left_s is None else round(left_s, 1),
    }


def error_of(service: VideoService, job: JobRecord) -> dict[str, str] | None:
    """Why a job ended without a video; None if it did not."""
    if job.state == "cancelled":
        return {"code": "cancelled", "message": "it was cancelled"}
    if job.state != "failed":
        return None
    message = job.error.partition("\n")[0].replace(f"{service.folder}/", "")
    return {"code": "generation_failed", "message": message}
