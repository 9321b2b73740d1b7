"""HTML of the page's parts: videos, their settings, the gallery, the ranks."""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence
from typing import Any

from longtake.configs.families import holds_mapping
from longtake.configs.request import ResolvedRequest
from longtake.serve.http.request.openai_request import parse_submission
from longtake.serve.http.video_object import VideoObjects
from longtake.serve.page.form import label_of
from longtake.serve.queue.job_records import JobRecord
from longtake.serve.service.service import VideoService
from longtake.serve.templates import TEMPLATES

_PHASES = {
    "": "starting",
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
    """Renders the page's parts as HTML.

    Args:
        service: The service.
        objects: Converts jobs to video objects.
    """

    def __init__(self, service: VideoService, objects: VideoObjects) -> None:
        self._service = service
        self._objects = objects

    def header(self) -> str:
        """The name of the model, and a note about it."""
        note = self._service.engine.spec.defaults.note
        return TEMPLATES.get_template("header.html").render(
            model=self._service.model.name, note=note
        )

    def examples(self) -> str:
        """Example prompts of the model; empty if it has none."""
        examples = self._service.engine.spec.defaults.examples
        if not examples:
            return ""
        return TEMPLATES.get_template("examples.html").render(examples=examples)

    def status(self, job: JobRecord | None, problem: str = "", *, gone: bool = False) -> str:
        """The video or the progress of a job.

        Args:
            job: The current job; None if there is none.
            problem: An error message.
            gone: Whether the video in the page's address no longer exists.
        """
        if gone:
            problem = "This video is no longer there: it was deleted, or has expired."
        shown = None if job is None else self._shown(job)
        return TEMPLATES.get_template("status.html").render(job=shown, problem=problem)

    def details(self, job: JobRecord | None) -> str:
        """The prompt and the settings of a job."""
        settings = [] if job is None else self._settings(job)
        return TEMPLATES.get_template("details.html").render(job=job, settings=settings)

    def gallery(self, jobs: Sequence[JobRecord], shown: str) -> str:
        """Thumbnails of several jobs.

        Args:
            jobs: The jobs.
            shown: Id of the current job.
        """
        described = [
            {
                "id": job.id,
                "state": job.state,
                "prompt": job.request.prompt,
                "latents": job.request.output_type == "latents",
                "label": {"running": "in progress"}.get(job.state, job.state),
            }
            for job in jobs
        ]
        return TEMPLATES.get_template("gallery.html").render(jobs=described, shown=shown)

    def engine(self) -> str:
        """State of the ranks, and how the last video was rendered."""
        service, last = self._service, self._service.progress.last
        devices = service.ranks.devices or service.engine.config.devices_by_rank
        peaks = {} if last is None else {rank.rank: rank for rank in last.ranks}
        ranks = [
            {
                "number": rank,
                "device": peaks[rank].device if rank in peaks else device,
                "state": "running" if service.ranks.loaded else "starting",
                "memory": f"{peaks[rank].peak_memory_bytes / 2**30:.2f} GiB"
                if rank in peaks
                else "",
            }
            for rank, device in enumerate(devices)
        ]
        return TEMPLATES.get_template("engine.html").render(
            status=f"{service.unready or 'ready'}.".capitalize(),
            model=service.model.name,
            dtype=service.engine.config.weights_dtype,
            layout="" if last is None else f"{last.layout.name} (cfg x ring x ulysses)",
            layout_reason="" if last is None else last.why,
            kernel="" if last is None else last.engine.attention_kernel,
            restarts=service.ranks.restarts,
            note=service.progress.last_note.replace(f"{service.folder}/", ""),
            ranks=ranks,
        )

    def estimate(self, values: Mapping[str, Any]) -> str:
        """The estimated rendering time of a form's video.

        Args:
            values: Fields of the equivalent API request.

        Raises:
            RefusedInputError: The video cannot be rendered here.
        """
        service = self._service
        spec = service.engine.spec
        any_prompt = {"seed": 0, **values, "prompt": "any"}
        request = parse_submission(any_prompt, {}, service.model.name, spec).request
        if not spec.pictures:
            resolved = service.admission.resolve(request)
        else:
            resolved = service.admission.resolve_without_pictures(request)
        size = f"{resolved.width} × {resolved.height}, {_frame_count(resolved.num_frames)}"
        time = "Time not known yet"
        if service.eta.known:
            time = f"About {_duration(service.eta.rendering_s(resolved))}"
        return TEMPLATES.get_template("estimate.html").render(text=f"{time} for {size}", problem="")

    def problem(self, message: str) -> str:
        """An error that concerns no single field, in place of the estimate."""
        return TEMPLATES.get_template("estimate.html").render(text="", problem=message)

    def _shown(self, job: JobRecord) -> dict[str, Any]:
        service, request = self._service, job.request
        progress = service.progress.of_job(job.id) if job.state == "running" else None
        error = self._objects.error(job)
        label, percent = self._state(job), self._objects.percent(job)
        return {
            "id": job.id,
            "state": job.state,
            "active": not job.ended,
            "title": f"{percent} %" if job.state == "running" else label,
            "announcement": _ANNOUNCED[job.state],
            "prompt": request.prompt,
            "width": request.width,
            "height": request.height,
            "latents": request.output_type == "latents",
            "files": [path.name for path in service.outputs(job)],
            "percent": percent,
            "label": label,
            "left": self._left(job),
            "frames": zlib.crc32(progress.thumbnails) if progress and progress.thumbnails else "",
            "error": "" if error is None or job.state == "cancelled" else error["message"],
            "summary": f"{request.width} × {request.height}, {_frame_count(request.num_frames)}, "
            f"{_duration(sum(job.seconds.values()))}",
        }

    def _settings(self, job: JobRecord) -> list[tuple[str, object]]:
        request = job.request
        frames = request.num_frames - self._service.engine.spec.dropped_frames
        return [
            ("seed", request.seed),
            ("size", f"{request.width}x{request.height}"),
            ("frames", f"{frames} at {request.fps:g} a second"),
            ("steps", request.num_inference_steps),
            ("guidance", f"{request.guidance_scale:g}"),
            ("flow shift", f"{request.flow_shift:g}"),
            *(("LoRA", lora) for lora in request.lora or ()),
            *self._options(request),
            ("negative prompt", request.negative_prompt or "none"),
            ("videos", request.num_videos),
            ("id", job.id),
        ]

    def _options(self, request: ResolvedRequest) -> list[tuple[str, object]]:
        """The model's own options, except those that are mappings."""
        return [
            (label_of(name, field), _shown(getattr(request, name)))
            for name, field in self._service.engine.spec.options.model_fields.items()
            if not holds_mapping(field)
        ]

    def _state(self, job: JobRecord) -> str:
        if job.ended:
            return job.state.capitalize()
        if job.cancelling:
            limit_s = self._service.engine.config.stop_timeout_s
            return f"Ends after this step, in {_duration(limit_s)} at most"
        if job.state == "queued":
            ahead = len(self._before(job))
            return f"Waiting: {ahead} ahead of it" if ahead else "Waiting for the ranks"
        now, _ = self._service.eta.current(job)
        if now.phase in ("denoising", "decoding"):
            part = "Step" if now.phase == "denoising" else "Decoding: tile"
            return f"{part} {now.done} of {now.total}"
        return _PHASES.get(now.phase, now.phase).capitalize()

    def _left(self, job: JobRecord) -> str:
        """Time until a job is done, with all jobs before it; empty if it has ended or is ending."""
        if job.ended or job.cancelling:
            return ""
        seconds = self._service.eta.seconds_left().get(job.id)
        return "time left not known yet" if seconds is None else f"about {_duration(seconds)} left"

    def _before(self, job: JobRecord) -> list[JobRecord]:
        """The jobs that will be rendered before a queued one."""
        if job.state != "queued":
            return []
        return [
            each
            for each in self._service.store.unfinished_jobs()
            if not each.cancelling and (each.state == "running" or each.position < job.position)
        ]


def _shown(value: object) -> object:
    """The value of an option, as the details show it."""
    if value is None:
        return "none"
    return f"{value:g}" if isinstance(value, float) else value


def _frame_count(count: int) -> str:
    return "1 frame" if count == 1 else f"{count} frames"


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{max(1, round(seconds))} s"
    if seconds < 5400:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h"
