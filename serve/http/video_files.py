"""Responses with the files of a video: the video, a thumbnail, and a strip of frames."""

from __future__ import annotations

import re
from pathlib import Path

from fastapi import Request
from fastapi.responses import FileResponse, Response

from longtake.serve.http.problems import Problem
from longtake.serve.queue.job_records import JobRecord
from longtake.serve.runner.filmstrip import middle_frame

_RANGE = re.compile(r"bytes=(\d{1,18}-\d{0,18}|-\d{1,18})(, ?(\d{1,18}-\d{0,18}|-\d{1,18})){0,15}")
_MEDIA_TYPES = {".mp4": "video/mp4", ".safetensors": "application/octet-stream"}


def drop_invalid_range(request: Request) -> None:
    """Ignore invalid Range headers (RFC 9110, 14.2)."""
    value = request.headers.get("range", "bytes=0-")
    pairs = re.findall(r"(\d+)-(\d+)", value)
    if not _RANGE.fullmatch(value) or any(int(first) > int(last) for first, last in pairs):
        headers = request.scope["headers"]
        request.scope["headers"] = [(name, value) for name, value in headers if name != b"range"]


def video_response(job: JobRecord, paths: list[Path], index: int) -> Response:
    """The response with one of a job's video files.

    Raises:
        Problem: The job is not done, has no file with this index, or the file is missing.
    """
    if job.state != "done":
        raise Problem(404, f"{job.id} is not done yet: it is {job.state}", code="not_ready")
    if not 0 <= index < len(paths):
        raise Problem(400, f"index={index} must be 0 to {len(paths) - 1}", param="index")
    path = paths[index]
    if not path.is_file():
        raise Problem(404, f"the file of {job.id} is gone", code="not_found")
    return FileResponse(
        path,
        media_type=_MEDIA_TYPES[path.suffix],
        filename=path.name,
        content_disposition_type="inline",
        headers={"cache-control": "private, max-age=3600"},
    )


def frames_response(job: JobRecord, thumbnails: bytes, strip: Path, variant: str) -> Response:
    """The response with a JPEG of some frames side by side, or of the middle one.

    Args:
        job: The job.
        thumbnails: Strip of the frames decoded so far, for a running job; empty before the first.
        strip: Path of the strip, for a finished job.
        variant: ``spritesheet`` or ``thumbnail``.

    Raises:
        Problem: No frame is decoded yet.
    """
    picture = thumbnails
    if job.state == "done":
        try:
            picture = strip.read_bytes()
        except OSError:
            picture = b""
    if not picture:
        raise Problem(404, f"no frame of {job.id} is decoded yet", code="not_ready")
    if variant == "thumbnail":
        picture = middle_frame(picture, job.request.width / job.request.height)
    return Response(picture, media_type="image/jpeg", headers={"cache-control": "no-cache"})
