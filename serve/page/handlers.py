"""Functions that the page's elements call."""

from __future__ import annotations

import json
import logging
import zlib
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

import gradio as gr

from longtake.errors import EngineError, RefusedInputError
from longtake.serve.http.problems import unavailable_message
from longtake.serve.http.request.openai_request import field_error, parse_submission, request_fields
from longtake.serve.page.elements import lora_choices
from longtake.serve.page.form import Form
from longtake.serve.page.views import Views
from longtake.serve.queue.job_database import QueueError
from longtake.serve.queue.job_records import JobRecord
from longtake.serve.service.service import VideoService
from longtake.serve.service.submission import PICTURE_FIELDS, FieldError

logger = logging.getLogger(__name__)

VIDEOS_PER_PAGE = 24
_MAX_VIDEOS = 480


class Handlers:
    """The functions that the page calls. They accept any arguments a client sends.

    The server keeps no state of a page: each call names the current video and what is shown.

    Args:
        service: The service.
        form: The page's form.
        views: Renders the page's parts.
    """

    def __init__(self, service: VideoService, form: Form, views: Views) -> None:
        self._service = service
        self._form = form
        self._views = views

    def open(self, video: str, draft: str) -> list[Any]:
        """Load the page: the video of the address, its pictures, and its settings.

        Args:
            video: Id in the address; may be empty.
            draft: The unsent prompt, which replaces the video's.
        """
        job = self._find(video)
        if job is None:  # keep the fields that were filled in meanwhile
            nothing = [gr.skip()] * (len(self._form.fields) - 1)
            return [video, *[""] * len(self._pictures), draft or gr.skip(), *nothing]
        prompt, *settings = self._form.values(job.request)
        return [job.id, *self._kept_pictures(job), draft or prompt, *settings]

    def lora_choices(self) -> list[Any]:
        """The choices of each field that chooses a LoRA."""
        offered = [] if self._service.loras is None else self._service.loras.offered()
        choices = lora_choices([use for lora in offered for use in lora.uses])
        return [gr.update(choices=choices) for _ in self._form.loras[::2]]

    @staticmethod
    def show_more(count: Any) -> str:
        """The next number of videos in the gallery."""
        return str(min(_MAX_VIDEOS, _parse_count(count) + VIDEOS_PER_PAGE))

    def settings(self, video: str) -> list[Any]:
        """The names of a video's pictures and the values of the form; no change if the video is
        gone."""
        job = self._find(video)
        if job is None:
            return [gr.skip()] * (len(self._pictures) + len(self._form.fields))
        return [*self._kept_pictures(job), *self._form.values(job.request)]

    @property
    def _pictures(self) -> list[str]:
        """Request fields of the pictures that the model takes."""
        return list(self._service.engine.spec.pictures)

    def _kept_pictures(self, job: JobRecord) -> list[str]:
        """The name of each picture of a video; empty for those that it does not have."""
        return [job.id if name in job.request.picture_paths else "" for name in self._pictures]

    def refresh(self, video: str, shown: str, count: str) -> list[Any]:
        """Everything that changes with time: four parts of HTML, five buttons, and checksums.

        Args:
            video: Id of the current video; may be empty.
            shown: Checksums of the parts on the page; unchanged parts are skipped.
            count: Number of videos in the gallery.
        """
        try:
            job = self._service.store.find(str(video)) if video else None
            jobs, more = self._service.store.page(None, _parse_count(count), newest_first=True)
            parts = [
                self._views.status(job, gone=bool(video) and job is None),
                self._views.details(job),
                self._views.gallery(jobs, video),
                self._views.engine(),
            ]
        except EngineError as error:
            return [self._views.status(None, unavailable_message(error)), *[gr.skip()] * 9]
        active, ended = job is not None and not job.ended, job is not None and job.ended
        can_retry = job is not None and job.state in ("failed", "cancelled")
        buttons = (active, can_retry, ended, job is not None, more)
        checksums = [f"{zlib.crc32(part.encode()):x}" for part in (*parts, repr(buttons))]
        previous = [*str(shown).split(","), *[""] * len(checksums)]
        same = [new == old for new, old in zip(checksums, previous, strict=False)]
        return [
            *(
                gr.skip() if unchanged else part
                for part, unchanged in zip(parts, same, strict=False)
            ),
            *(gr.skip() if same[-1] else gr.update(visible=each) for each in buttons),
            ",".join(checksums),
        ]

    def submit(self, shown: str, request: gr.Request, *filled: Any) -> list[Any]:
        """Queue a video. Returns its id, the estimate, and an error of one field.

        If it is refused, the id is that of the current video.

        Args:
            shown: Id of the current video.
            request: The client's request.
            filled: The name of each picture, then the values of the form.
        """
        values: dict[str, Any] = {}
        count = len(self._pictures)
        try:
            values = self._form.request(filled[count:])
            return self._queue(values, self._read_pictures(filled[:count]), request)
        except RefusedInputError as error:
            return [shown, *self._show_error(error, values)]
        except EngineError as error:
            logger.warning("%s", error)
            return [shown, self._views.problem(unavailable_message(error)), ""]

    def retry(self, video: str, request: gr.Request) -> list[Any]:
        """Queue a video with the settings of one that failed or was cancelled."""
        job = self._find(video)
        if job is None or job.state not in ("failed", "cancelled"):
            return [gr.skip()] * 3
        try:
            uploads = self._read_pictures(self._kept_pictures(job))
            return self._queue(request_fields(job), uploads, request)
        except RefusedInputError as error:
            return [video, self._views.problem(str(error)), ""]
        except EngineError as error:
            logger.warning("%s", error)
            return [video, self._views.problem(unavailable_message(error)), ""]

    def cancel(self, video: str) -> None:
        """Cancel a video that has not ended."""
        job = self._find(video)
        if job is not None and not job.ended:
            with suppress(QueueError):  # the next refresh reports it
                self._service.cancel(job)

    def estimate(self, *form: Any) -> list[Any]:
        """The estimated rendering time of the form's video, or an error in the form."""
        values = self._form.request(form)
        try:
            return [self._views.estimate(values), ""]
        except RefusedInputError as error:
            return self._show_error(error, values)

    def _read_pictures(self, names: Sequence[Any]) -> dict[str, bytes]:
        """Content of pictures, by name in the API.

        Args:
            names: For each picture of the model: the name of an upload, the id of an earlier video,
                "!" and the error message of the upload, or nothing.
        """
        contents = {}
        for picture, name in zip(self._pictures, map(str, names), strict=True):
            field = PICTURE_FIELDS[picture]
            if name.startswith("!"):
                raise FieldError(name[1:], field)
            if name not in ("", "None"):
                contents[field] = self._service.picture(name, picture)
        return contents

    def _queue(
        self, values: dict[str, Any], uploads: dict[str, bytes], request: gr.Request
    ) -> list[Any]:
        service = self._service
        submission = parse_submission(values, uploads, service.model.name, service.engine.spec)
        client = request.request.scope["client_label"] if request.request else ""
        job = service.admission.submit(submission, client=client)
        return [job.id, gr.skip(), ""]

    def _show_error(self, error: RefusedInputError, values: dict[str, Any]) -> list[Any]:
        """The error in place of the estimate, or below the field that it names."""
        named = field_error(error, values)
        field = self._form.field_of(named.param)
        if not field:
            return [self._views.problem(str(named)), ""]
        message = str(named).removeprefix(f"{field}=")  # the label names the field
        return [gr.skip(), json.dumps({"field": field, "message": message})]

    def _find(self, video: str) -> JobRecord | None:
        """A job; None if there is none, or if the queue cannot be read, which a refresh reports."""
        with suppress(QueueError):
            return self._service.store.find(str(video)) if video else None
        return None


def _parse_count(count: Any) -> int:
    """The number of videos in the gallery; the default if it is invalid."""
    text = str(count)
    return int(text) if text.isdecimal() and len(text) < 4 else VIDEOS_PER_PAGE
