"""Functions that the page's elements call."""

from __future__ import annotations

import json
import logging
import zlib
from contextlib import suppress
from typing import Any

import gradio as gr

from longtake.errors import EngineError, RefusedInputError
from longtake.serve.http.problems import unavailable_message
from longtake.serve.http.request.openai_request import field_error, parse_submission, request_fields
from longtake.serve.page.form import FIELDS, Form
from longtake.serve.page.views import Views
from longtake.serve.queue.job_database import QueueError
from longtake.serve.queue.job_records import JobRecord
from longtake.serve.service.service import VideoService
from longtake.serve.service.submission import FieldError

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
        """Load the page: the video of the address, its picture, and its settings.

        Args:
            video: Id in the address; may be empty.
            draft: The unsent prompt, which replaces the video's.
        """
        job = self._find(video)
        if job is None:  # keep the fields that were filled in meanwhile
            return [video, "", draft or gr.skip(), *[gr.skip()] * (len(FIELDS) - 1)]
        picture, prompt, *settings = self.settings(video)
        return [job.id, picture, draft or prompt, *settings]

    @staticmethod
    def show_more(count: Any) -> str:
        """The next number of videos in the gallery."""
        return str(min(_MAX_VIDEOS, _parse_count(count) + VIDEOS_PER_PAGE))

    def settings(self, video: str) -> list[Any]:
        """The name of a video's picture and the values of the form; no change if the video is
        gone."""
        job = self._find(video)
        if job is None:
            return [gr.skip()] * (1 + len(FIELDS))
        picture = job.id if job.request.image is not None else ""
        return [picture, *self._form.values(job.request)]

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

    def submit(self, picture: str, shown: str, request: gr.Request, *form: Any) -> list[Any]:
        """Queue a video. Returns its id, the estimate, and an error of one field.

        If it is refused, the id is that of the current video.
        """
        values: dict[str, Any] = {}
        try:
            values = self._form.request(form)
            upload, picture = None, str(picture or "")
            if picture.startswith("!"):  # the error message of the upload
                raise FieldError(picture[1:], "input_reference")
            if picture:
                upload = self._service.picture(picture)
            return self._queue(values, upload, request)
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
            upload = None if job.request.image is None else self._service.picture(job.id)
            return self._queue(request_fields(job), upload, request)
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

    def _queue(
        self, values: dict[str, Any], upload: bytes | None, request: gr.Request
    ) -> list[Any]:
        service = self._service
        submission = parse_submission(values, upload, service.model.name, service.engine.spec)
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
