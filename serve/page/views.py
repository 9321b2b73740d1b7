"""What the page shows of jobs and of the ranks, in words and HTML."""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence
from typing import Any

from longtake.serve.http.objects import error_of, progress_of
from longtake.serve.http.openai_request import asked_of
from longtake.serve.queue.job_records import JobRecord
from longtake.serve.service.service import VideoService
from longtake.serve.templates import TEMPLATES

_PHASES = {
    "": "begins",
    "loading": "loading the model",
    "text": "reading the prompt",
    "waiting": "waiting for other ranks",
    "writing": "writing the video",
}
_ANNOUNCED = {
    "queued": "The video waits.",
    "running": "The video is being rendered.",
    "done": "The video is done.",
    "failed": "The video failed.",
    "cancelled": "The video was cancelled.",
}


class Views:
    """Of one service.

    Args:
        service: whose jobs they are.
    """

    def __init__(self, service: VideoService) -> None:
        self._service = service

    def header(self) -> str:
        """What is served, and what a user should know of it."""
        note = self._service.engine.spec.defaults.note
        return TEMPLATES.get_template("header.html").render(model=self._service.model, note=note)

    def examples(self) -> str:
        """Prompts that the model knows."""
        examples = self._service.engine.spec.defaults.examples
        return TEMPLATES.get_template("examples.html").render(examples=examples)

    def status(self, job: JobRecord | None, problem: str = "", *, gone: bool = False) -> str:
        """One job: its video, or how far it is."""
        if gone:
            problem = "This video is no longer there: it was deleted, or has expired."
        shown = None if job is None else self._shown(job)
        return TEMPLATES.get_template("status.html").render(job=shown, problem=problem)

    def details(self, job: JobRecord | None) -> str:
        """What was asked for."""
        settings = [] if job is None else self._settings(job)
        return TEMPLATES.get_template("details.html").render(job=job, settings=settings)

    def gallery(self, jobs: Sequence[JobRecord], shown: str) -> str:
        """Several jobs in small."""
        described = [
            {
                "id": job.id,
                "state": job.state,
                "prompt": job.request.prompt,
                "latents": job.request.output_type == "latents",
                "words": {"running": "in progress"}.get(job.state, job.state),
            }
            for job in jobs
        ]
        return TEMPLATES.get_template("gallery.html").render(jobs=described, shown=shown)

    def engine(self) -> str:
        """The ranks, and what they last rendered in."""
        service, last = self._service, self._service.live.last
        supervisor = service.supervisor
        devices = (
            service.engine.config.devices_by_rank if supervisor is None else supervisor.devices
        )
        peaks = {} if last is None else {rank.rank: rank for rank in last.ranks}
        ranks = [
            {
                "number": rank,
                "device": peaks[rank].device if rank in peaks else device,
                "state": "running" if service.loaded else "starting",
                "memory": f"{peaks[rank].peak_memory_bytes / 2**30:.2f} GiB"
                if rank in peaks
                else "",
            }
            for rank, device in enumerate(devices)
        ]
        return TEMPLATES.get_template("engine.html").render(
            words=f"{service.unready or 'ready'}.".capitalize(),
            model=service.model,
            dtype=service.engine.config.dtype,
            layout="" if last is None else f"{last.layout.name} (cfg x ring x ulysses)",
            why="" if last is None else last.why,
            kernel="" if last is None else last.engine.attention_kernel,
            restarts=service.restarts,
            said=service.live.said.replace(f"{service.folder}/", ""),
            ranks=ranks,
        )

    def estimate(self, values: Mapping[str, Any]) -> str:
        """How long a form's request takes, once it is begun.

        Raises:
            RefusedInputError: it cannot be rendered here.
        """
        service = self._service
        asked = {"seed": 0, **values, "prompt": "any"}
        spec = service.engine.spec
        request = asked_of(asked, None, service.model, spec).request
        if spec.image is None:
            resolved = service.resolved(request)
        else:
            resolved = service.resolved_without_picture(request)
        size = f"{resolved.width} × {resolved.height}, {_frames(resolved.num_frames)}"
        words = "Time not known yet"
        if service.pace.known:
            words = f"About {_words(service.pace.seconds_of(resolved))}"
        return TEMPLATES.get_template("estimate.html").render(
            words=f"{words} for {size}", problem=""
        )

    def problem(self, message: str) -> str:
        """What is amiss with a request as a whole, in the estimate's place."""
        return TEMPLATES.get_template("estimate.html").render(words="", problem=message)

    def _shown(self, job: JobRecord) -> dict[str, Any]:
        service, request = self._service, job.request
        course = service.live.course(job.id) if job.state == "running" else None
        error = error_of(service, job)
        words, percent = self._state(job), progress_of(service, job)
        return {
            "id": job.id,
            "state": job.state,
            "active": not job.ended,
            "title": f"{percent} %" if job.state == "running" else words,
            "announcement": _ANNOUNCED[job.state],
            "prompt": request.prompt,
            "width": request.width,
            "height": request.height,
            "latents": request.output_type == "latents",
            "files": [path.name for path in service.outputs(job)],
            "percent": percent,
            "words": words,
            "left": self._left(job),
            "frames": zlib.crc32(course.picture) if course and course.picture else "",
            "error": "" if error is None or job.state == "cancelled" else error["message"],
            "summary": f"{request.width} × {request.height}, {_frames(request.num_frames)}, "
            f"{_words(sum(job.seconds.values()))}",
        }

    def _settings(self, job: JobRecord) -> list[tuple[str, object]]:
        request = job.request
        frames = self._service.engine.num_frames_of(request)
        return [
            ("seed", request.seed),
            ("size", f"{request.width}x{request.height}"),
            ("frames", f"{frames} at {request.fps:g} a second"),
            ("steps", request.num_inference_steps),
            ("guidance", f"{request.guidance_scale:g}"),
            ("flow shift", f"{request.flow_shift:g}"),
            ("true CFG scale", f"{request.true_cfg_scale:g}"),
            ("negative prompt", request.negative_prompt or "none"),
            ("videos", request.num_videos),
            ("id", job.id),
        ]

    def _state(self, job: JobRecord) -> str:
        if job.ended:
            return job.state.capitalize()
        if job.cancelling:
            limit_s = self._service.engine.config.stop_timeout_s
            return f"Ends after this step, in {_words(limit_s)} at most"
        if job.state == "queued":
            ahead = len(self._before(job))
            return f"Waiting: {ahead} before it" if ahead else "Waiting for the ranks"
        now, _ = self._service.pace.standing(job)
        if now.phase in ("denoising", "decoding"):
            part = "Step" if now.phase == "denoising" else "Decoding: tile"
            return f"{part} {now.done} of {now.total}"
        return _PHASES.get(now.phase, now.phase).capitalize()

    def _left(self, job: JobRecord) -> str:
        """Until it is there, with all before it; nothing once it has ended, or is to end."""
        if job.ended or job.cancelling:
            return ""
        seconds = self._service.pace.seconds_left().get(job.id)
        return "time left not known yet" if seconds is None else f"about {_words(seconds)} left"

    def _before(self, job: JobRecord) -> list[JobRecord]:
        """Those that are rendered before a job that waits."""
        if job.state != "queued":
            return []
        return [
            each
            for each in self._service.store.unfinished_jobs()
            if not each.cancelling and (each.state == "running" or each.position < job.position)
        ]


def _frames(count: int) -> str:
    return "1 frame" if count == 1 else f"{count} frames"


def _words(seconds: float) -> str:
    if seconds < 90:
        return f"{max(1, round(seconds))} s"
    if seconds < 5400:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h"
