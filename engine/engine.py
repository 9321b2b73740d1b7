"""The engine: a model on some ranks, and requests that go through it one after the other."""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy.typing as npt

from longtake.configs.engine import EngineConfig
from longtake.configs.parallel import ParallelConfig
from longtake.configs.request import DecodeRequest, Rendering, ResolvedDecode, ResolvedRequest
from longtake.engine.job import Job, JobInput, RankReport
from longtake.engine.launch.choose_launcher import launcher_factory
from longtake.engine.launch.launcher import Launcher
from longtake.engine.launch.torchrun import TorchrunPlace
from longtake.engine.media.latents import checked_latents
from longtake.engine.media.picture import read_picture
from longtake.engine.media.snapshot import Identity, SnapshotPlan
from longtake.engine.outline import EngineOutline
from longtake.engine.request import resolve_decode
from longtake.engine.request_arguments import request_of
from longtake.engine.sinks import Sink
from longtake.engine.video import Array, FramesInMemory, Metadata, Video
from longtake.errors import (
    EngineError,
    RefusedInputError,
    RequestError,
)
from longtake.parallel import ParallelDims
from longtake.pipelines.progress import OnProgress, Progress, StopRequested, never

logger = logging.getLogger(__name__)

ResolvedT = TypeVar("ResolvedT")


class VideoEngine(EngineOutline):
    """Renders videos on any number of ranks. Its model stays loaded between requests.

    Building one checks the model's files and the layout; nothing is loaded or started before
    :meth:`start` or the first rendering. Use it as a context, or :meth:`close` it. Threads may
    share one: their requests are rendered one after the other.

    Args:
        config: the model, the ranks, their deadlines.
        isolated: have even a single rank in a process of its own, whose end this one survives.
        scratch: folder for what ranks print; the system's for temporary files.

    Attributes:
        config: with nothing left to be chosen but degrees and attention kernel.
        spec: what can be said of the model before it is loaded.
        layouts: that requests run in, and how long they take there by the plan.
        writes: whether this process gets the frames; under torchrun only rank 0's does.

    Raises:
        ModelError: the model is missing, damaged or of an unknown kind.
        LayoutError: the degrees do not fit the devices, or there are not so many.
        KernelError: an unknown attention kernel.
    """

    def __init__(
        self, config: EngineConfig, *, isolated: bool = False, scratch: Path | None = None
    ) -> None:
        place = TorchrunPlace.from_environment() if TorchrunPlace.given() else None
        super().__init__(config, place)
        self.writes = TorchrunPlace.writes()
        self._seconds_loading = 0.0
        self._launcher: Launcher | None = None
        self._make = launcher_factory(self.config, place, isolated=isolated, scratch=scratch)
        self._busy = threading.RLock()
        self._rendering = False

    @classmethod
    def from_pretrained(
        cls,
        model: str | os.PathLike[str] = "demo",
        *,
        parallel: ParallelConfig | None = None,
        devices: int = 1,
        on_progress: OnProgress = lambda progress: None,
        **settings: Any,
    ) -> VideoEngine:
        """Load a model on some ranks.

        Args:
            model: a folder in diffusers layout, a hub id, or "demo": the small trained one that
                comes with the package.
            parallel: the degrees; those left out follow from the devices and each request.
            devices: GPUs, or processes on the CPU. Under torchrun, its ranks.
            settings: any other field of :class:`longtake.configs.engine.EngineConfig`.

        Raises:
            RefusedInputError: the model or a setting cannot be used.
            RankError: a rank died or hung while loading.
        """
        config = EngineConfig(
            model=os.fspath(model) if isinstance(model, os.PathLike) else model,
            parallel=parallel or ParallelConfig(),
            devices=devices,
            **settings,
        )
        engine = cls(config)
        engine.start(on_progress)
        return engine

    @property
    def running(self) -> bool:
        """Whether its ranks were started, and none was seen to end."""
        return self._launcher is not None

    def resolve_decode(
        self, request: DecodeRequest, latents_shape: Sequence[int]
    ) -> ResolvedDecode:
        """How latents of shape B, C, F, H, W become a video, checked against the model.

        Raises:
            RequestError: they cannot be decoded here.
        """
        return resolve_decode(request, latents_shape, self.spec)

    def num_frames_of(self, request: ResolvedDecode) -> int:
        """Frames of each video that comes of a request: some models drop the first ones."""
        return request.num_frames - self.spec.dropped_frames

    def start(
        self,
        on_progress: OnProgress = lambda progress: None,
        stop_requested: StopRequested = never,
    ) -> None:
        """Start the ranks and load the model, unless that is done.

        Raises:
            ModelError: the weights do not fit the architecture.
            RankError: a rank died or hung.
            Stopped: it was requested.
        """
        with self._busy:
            if self._launcher is not None:
                return
            begun = time.perf_counter()
            launcher = self._make(self.config, self._device_type)
            on_progress(Progress("loading"))
            launcher.start(on_progress, stop_requested)
            self._launcher = launcher
            self._seconds_loading = time.perf_counter() - begun

    def generate(
        self,
        request: Rendering | str | None = None,
        on_progress: OnProgress = lambda progress: None,
        **fields: Any,
    ) -> Video:
        """Render a request, and keep its frames in memory.

            video = engine.generate(prompt="a red cat", num_frames=33, seed=7)

        Args:
            request: a :class:`longtake.VideoRequest`, or a prompt.
            on_progress: called as ranks finish steps; what it raises stops all ranks between steps.
            fields: of a request, by name, in the place of one. ``image`` may be a path or a picture
                of PIL, which the metadata then know by its digest alone.

        Raises:
            RefusedInputError: the request cannot be rendered here; the engine can go on.
            RankError: a rank died or hung. The next call starts the ranks again, except
                under torchrun. If denoising was done, its ``latents`` can be decoded.
        """
        with request_of(request, fields) as asked:
            if self.spec.image is None:  # then all ranks of torchrun look at the same
                return self._kept(self.resolve(asked), on_progress)
            resolved = self._of_rank_0(lambda: self.resolve(asked), on_progress)
            video = self._kept(resolved, on_progress)
        if not isinstance(fields.get("image", ""), str | os.PathLike):  # it had a file meanwhile
            made = video.metadata.request.model_copy(update={"image": None})
            video.metadata.request = made
        return video

    def decode(
        self,
        latents: npt.ArrayLike | None,
        request: DecodeRequest | None = None,
        on_progress: OnProgress = lambda progress: None,
    ) -> Video:
        """Decode latents on all ranks, and keep the frames in memory.

        Args:
            latents: ``[B, C, F, H, W]`` or ``[C, F, H, W]``, as :class:`Video` has them; under
                torchrun, rank 0's count, and others may pass None.
            request: how; the model's defaults if None.

        Raises:
            As :meth:`generate`.
        """

        def checked() -> tuple[ResolvedDecode, Array]:
            array = checked_latents(latents)
            return self.resolve_decode(request or DecodeRequest(), array.shape), array

        resolved, array = self._of_rank_0(checked, on_progress) or (None, None)
        return self._kept(resolved, on_progress, array)

    def knows(self, request: Rendering) -> bool:
        """Whether this process resolves a request; under torchrun rank 0 alone may have its
        picture, and the others render what rank 0 does."""
        return self.writes or request.image is None

    def _of_rank_0(
        self, resolve: Callable[[], ResolvedT], on_progress: OnProgress
    ) -> ResolvedT | None:
        """What rank 0 alone can resolve, there; what it refuses all ranks of torchrun refuse."""
        try:
            return resolve() if self.writes else None
        except RefusedInputError as error:
            if TorchrunPlace.given():
                with self._busy:
                    self.start(on_progress)
                    assert self._launcher is not None
                    self._launcher.agree(None, error)
            raise

    def _kept(
        self,
        request: ResolvedDecode | None,
        on_progress: OnProgress,
        latents: Array | None = None,
    ) -> Video:
        kept = FramesInMemory(0 if request is None else self.num_frames_of(request), latents)
        try:
            metadata = self.render(request, kept, on_progress, latents)
        except EngineError as error:
            error.latents = kept.all_latents if kept.all_latents.size else None
            raise
        for warning in metadata.warnings():
            logger.warning("%s", warning)
        return Video(kept.batch, kept.all_latents, metadata, self.writes)

    def render(
        self,
        request: ResolvedDecode | None,
        sink: Sink,
        on_progress: OnProgress = lambda progress: None,
        latents: Array | None = None,
        *,
        snapshots: SnapshotPlan | None = None,
        low_memory: bool = False,
        stop_requested: StopRequested = never,
    ) -> Metadata:
        """Render a resolved request into a sink, frame by frame as they are decoded.

        Args:
            request: None on ranks of torchrun that do not know it, or may not have its picture:
                rank 0's counts.
            latents: ``[B, C, F, H, W]``, to decode these and render nothing.
            snapshots: from :func:`longtake.engine.media.snapshot.plan_snapshots`; the caller keeps
                or removes the file.
            low_memory: decode with as little of the devices' memory as can be.
            stop_requested: asked again and again; ranks in processes of their own that do not
                stop within ``stop_timeout_s`` are killed, and the next rendering starts others.

        Raises:
            As :meth:`generate`; what the sink raises stops all ranks, too.
        """
        with self._busy:
            if self._rendering:
                raise RequestError("generate() was called by a callback of its own: let it return")
            self.start(on_progress, stop_requested)
            launcher = self._launcher
            assert launcher is not None
            self._rendering = True
            try:
                extras = {"snapshots": snapshots, "low_memory": low_memory}
                job, beside = self._agreed(launcher, request, latents, extras)
                reports = launcher.render(job, sink, on_progress, beside, stop_requested)
            except BaseException:
                if not launcher.alive:
                    launcher.close()
                    self._launcher = None
                raise
            finally:
                self._rendering = False
            if reports[0].snapshot_failure:
                logger.warning("snapshots were left out: %s", reports[0].snapshot_failure)
            return self._metadata(job, reports)

    def identity_of(self, request: ResolvedRequest) -> Identity:
        """All that a request's latents follow from here."""
        return Identity.of(request, self.config, self._fingerprint)

    def close(self) -> None:
        """End all ranks and let go of the model."""
        with self._busy:
            if self._launcher is not None:
                self._launcher.close()
                self._launcher = None

    def __enter__(self) -> VideoEngine:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def _job(self, request: ResolvedDecode | None, from_latents: bool) -> Job | None:
        if request is None:
            return None
        if from_latents:
            dims = ParallelDims(ulysses_degree=self.config.devices)
        else:
            assert isinstance(request, ResolvedRequest)
            if (request.i2v_mode is None) != (self.spec.image is None):
                raise RequestError(
                    f"i2v_mode={request.i2v_mode!r} in a request that is resolved, with "
                    f"{self.config.model}: resolve it for this model"
                )
            dims, _ = self.layouts.choose(request)
        return Job.of(request, dims, from_latents=from_latents)

    def _agreed(
        self,
        launcher: Launcher,
        request: ResolvedDecode | None,
        latents: Array | None,
        extras: dict[str, Any],
    ) -> tuple[Job, JobInput]:
        """The job of all ranks, and what comes with it on rank 0."""
        own: Job | None = None
        beside: JobInput = latents
        refusal: RefusedInputError | None = None
        try:
            own = self._job(request, latents is not None)
            own = own and own.model_copy(update=extras)
            if own is not None and own.from_picture:
                assert isinstance(request, ResolvedRequest)
                beside = read_picture(*self._picture_of(request)).pixels
        except RefusedInputError as error:
            refusal = error
        return launcher.agree(own, refusal), beside

    def _metadata(self, job: Job, reports: list[RankReport]) -> Metadata:
        kernel = reports[0].attention_kernel or self.config.attention_kernel
        why = ""
        if not job.from_latents:
            assert isinstance(job.request, ResolvedRequest)
            why = self.layouts.choose(job.request)[1]
        return Metadata(
            job.request,
            self.config.model_copy(update={"attention_kernel": kernel}),
            job.dims,
            {"loading": self._seconds_loading, **reports[0].seconds},
            reports,
            self.num_frames_of(job.request),
            why=why,
        )
