"""Admission of submitted videos to the queue, within the server's limits."""

from __future__ import annotations

import hashlib
import json
import secrets
import time
from collections.abc import Collection
from dataclasses import replace
from pathlib import Path
from typing import Protocol

from pydantic_core import to_json

from longtake.configs.commands.serve import ServeConfig
from longtake.configs.engine import EngineConfig
from longtake.configs.fields.few_step import FewStep
from longtake.configs.request import ResolvedRequest, VideoRequest
from longtake.engine.resolve.request import resolve
from longtake.errors import RequestError
from longtake.pipelines.spec import ModelSpec
from longtake.serve.queue.job_records import JobRecord, NewJob
from longtake.serve.queue.submissions import SERVER_SOURCE, OtherRequestError, Submissions
from longtake.serve.service.eta import EtaEstimator
from longtake.serve.service.pictures import Pictures
from longtake.serve.service.served_model import ServedModel
from longtake.serve.service.submission import PICTURE_FIELDS, FieldError, Submission

VIDEOS_FOLDER = "videos"


class RequestChecker(Protocol):
    """Resolves and checks requests, as :class:`longtake.engine.resolve.outline.EngineOutline`."""

    spec: ModelSpec
    config: EngineConfig

    def resolve(self, request: VideoRequest) -> ResolvedRequest:
        """The resolved request; raises RefusedInputError if it is invalid."""
        ...

    def few_step_of_files(self, request: VideoRequest) -> FewStep | None:
        """The few-step settings that the files of weights and LoRAs name."""
        ...

    def out_of_memory_reason(self, request: ResolvedRequest) -> str | None:
        """Why a request does not fit in memory; None if it fits."""
        ...


class Admission:
    """Queues submitted videos that can be rendered within the server's limits.

    Args:
        engine: Resolves and checks requests.
        model: The served model.
        store: The job queue.
        pictures: Folder of the clients' pictures.
        eta: Estimates of rendering times.
        settings: The server's limits.
    """

    def __init__(
        self,
        engine: RequestChecker,
        model: ServedModel,
        store: Submissions,
        pictures: Pictures,
        eta: EtaEstimator,
        settings: ServeConfig,
    ) -> None:
        self._engine = engine
        self._model = model
        self._store = store
        self._pictures = pictures
        self._eta = eta
        self._settings = settings

    def submit(
        self, submission: Submission, *, client: str = "", idempotency_key: str | None = None
    ) -> JobRecord:
        """Queue a video. If an error is raised, nothing was queued and no picture is left.

        Args:
            submission: The request and its pictures.
            client: Label of the client's API key; empty if no key is needed.
            idempotency_key: Identifies the request when a client repeats it; None: a new job.

        Returns:
            The new job, or the earlier one of the same request and key.

        Raises:
            RefusedInputError: The video cannot be rendered within the limits.
            FieldError: A picture is missing, or the key belongs to another request.
            QueueFullError: Too many videos are queued.
            BeingDeletedError: The job of this key is being deleted.
        """
        for name in self._engine.spec.required_pictures:
            if name not in submission.pictures:
                field = PICTURE_FIELDS[name]
                raise FieldError(
                    f"{self._model.name} animates a picture: send {field}, a PNG, JPEG or WebP "
                    "file",
                    field,
                )
        fingerprint = _fingerprint(submission)
        key = idempotency_key
        digest = secrets.token_hex(16) if key is None else _digest(client, key)[:32]
        job_id = f"video_{digest}"
        try:
            existing = self._store.find(job_id)
            if existing is not None and existing.fingerprint == fingerprint:
                return existing
            if existing is not None:
                raise OtherRequestError(f"{job_id} is that of another request: choose another")
            return self._enqueue(job_id, submission, fingerprint, client)
        except OtherRequestError as error:
            raise FieldError(
                "this Idempotency-Key was used for another request: choose another",
                "Idempotency-Key",
            ) from error

    def resolve(self, request: VideoRequest) -> ResolvedRequest:
        """The resolved request.

        Raises:
            RefusedInputError: It is invalid, or exceeds the memory or the allowed time.
        """
        self._check_loras(request)
        return self._within_limits(self._engine.resolve(request))

    def resolve_without_pictures(self, request: VideoRequest) -> ResolvedRequest:
        """As :meth:`resolve`, for a request whose pictures are not chosen yet."""
        self._check_loras(request)
        few_step = self._engine.few_step_of_files(request)
        return self._within_limits(resolve(request, self._engine.spec, few_step=few_step))

    def _check_loras(self, request: VideoRequest) -> None:
        """Refuse LoRAs on a server that offers none: without a folder they would be paths."""
        if request.lora is not None and self._engine.config.lora_folder is None:
            raise FieldError(
                "lora: this server offers no LoRAs, its operator names their folder with "
                "--lora-folder: leave lora out",
                "lora",
            )

    def _within_limits(self, request: ResolvedRequest) -> ResolvedRequest:
        if reason := self._engine.out_of_memory_reason(request):
            raise RequestError(f"this video {reason}: ask for fewer frames, or smaller ones")
        seconds = self._eta.rendering_s(request)
        if seconds > self._settings.longest_s:
            raise RequestError(
                f"this video would take {seconds:.0f} s by the plan, and "
                f"{self._settings.longest_s:g} are allowed (--longest-s): ask for fewer frames, "
                "smaller ones, or fewer steps"
            )
        return request

    def _enqueue(
        self, job_id: str, submission: Submission, fingerprint: str, client: str
    ) -> JobRecord:
        request = submission.request
        if "embed_metadata" not in request.model_fields_set:
            request = request.model_copy(update={"embed_metadata": self._settings.embed_metadata})
        written: dict[str, Path] = {}
        kept: Collection[Path] = ()
        try:
            for name, content in submission.pictures.items():
                written[name] = self._pictures.write(job_id, content)
            request = request.model_copy(update=written)
            job = self._new_job(job_id, self.resolve(request), fingerprint)
            queued = self._add(replace(job, source=f"{SERVER_SOURCE} {client}".strip()))
            kept = queued.request.picture_paths.values()
            return queued
        finally:
            for path in written.values():
                if path not in kept:  # refused, or the job exists already
                    path.unlink(missing_ok=True)

    def _new_job(self, job_id: str, request: ResolvedRequest, fingerprint: str) -> NewJob:
        suffix = ".safetensors" if request.output_type == "latents" else ".mp4"
        return NewJob(
            id=job_id,
            source=SERVER_SOURCE,
            position=0,
            output=f"{VIDEOS_FOLDER}/{job_id}{suffix}",
            engine=self._model.digest,
            request=request,
            fingerprint=fingerprint,
            model=self._model.weights,
        )

    def _add(self, job: NewJob) -> JobRecord:
        settings = self._settings
        several_keys = len(settings.api_key) > 1
        of_key = settings.most_waiting_per_key if several_keys else settings.most_waiting
        queued, _ = self._store.add(
            job, time.time(), most_waiting=settings.most_waiting, most_of_source=of_key
        )
        return queued


def _fingerprint(submission: Submission) -> str:
    recorded = to_json(submission.request.as_recorded()).decode()
    pictures = submission.pictures
    digests = [hashlib.sha256(pictures.get("image", b"")).hexdigest()]
    others = sorted(pictures.keys() - {"image"})
    digests += [f"{name} {hashlib.sha256(pictures[name]).hexdigest()}" for name in others]
    return _digest(recorded, *digests)


def _digest(*texts: str) -> str:
    return hashlib.sha256(json.dumps(texts).encode()).hexdigest()
