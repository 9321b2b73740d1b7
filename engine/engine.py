"""The engine: a model loaded onto ranks, and the requests that they render one after the other."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import numpy.typing as npt

from longtake.configs.engine import EngineConfig
from longtake.configs.parallel import ParallelConfig
from longtake.configs.request import DecodeRequest, Rendering, ResolvedDecode, ResolvedRequest
from longtake.engine.job import LATENTS, NO_INPUTS, Job, JobInputs
from longtake.engine.launch.choose_launcher import LauncherFactory
from longtake.engine.launch.choose_launcher import launcher_factory as default_launcher_factory
from longtake.engine.launch.launcher import Launcher
from longtake.engine.launch.rank_session import RankSession
from longtake.engine.loras.choice import NO_LORAS, LoraChoice
from longtake.engine.media.arrays import Array
from longtake.engine.media.latents import checked_latents
from longtake.engine.media.pictures.picture import read_picture
from longtake.engine.media.sinks import Sink
from longtake.engine.media.snapshot import SnapshotPlan
from longtake.engine.metadata import Metadata
from longtake.engine.rank_report import RankReport
from longtake.engine.resolve.arguments import request_from_arguments, temporary_files
from longtake.engine.resolve.outline import EngineOutline
from longtake.engine.resolve.request import check_taken
from longtake.engine.torchrun import TorchrunEnvironment
from longtake.engine.video import FramesInMemory, Video
from longtake.errors import EngineError, RefusedInputError
from longtake.parallel import ParallelDims
from longtake.pipelines.runtime.progress import OnProgress, StopRequested, never

logger = logging.getLogger(__name__)

ResolvedT = TypeVar("ResolvedT")


class VideoEngine(EngineOutline):
    """Renders videos on any number of ranks. The model stays loaded between requests.

    The constructor checks the model's files and the layout; ranks start, and the model is loaded,
    in :meth:`start` or in the first rendering. Use it as a context manager, or :meth:`close` it.
    Threads may share one: their requests are rendered one after the other.

    Args:
        config: The model, its ranks and their deadlines.
        isolated: Run even a single rank in a separate process, so that this one survives it.
        scratch: Folder for the ranks' logs; the system's temporary folder if None.
        launcher_factory: Makes the launcher of the ranks. The default depends on the number of
            devices and on torchrun's variables.

    Attributes:
        config: The configuration, resolved but for the degrees, the attention kernel and, until
            ranks start, the places of weights.
        spec: Facts about the model that are known before it is loaded.
        layouts: The layouts that requests may run in, with their predicted durations.
        writes: Whether this process receives the frames; under torchrun, only rank 0 does.

    Raises:
        ModelError: The model is missing, damaged or of an unknown kind.
        LayoutError: The degrees do not fit the devices, or there are too few devices.
        KernelError: The attention kernel is unknown.
    """

    def __init__(
        self,
        config: EngineConfig,
        *,
        isolated: bool = False,
        scratch: Path | None = None,
        launcher_factory: LauncherFactory | None = None,
    ) -> None:
        torchrun = TorchrunEnvironment.detect()
        super().__init__(config, torchrun)
        self.writes = torchrun is None or torchrun.rank == 0
        self._under_torchrun = torchrun is not None
        factory = launcher_factory or default_launcher_factory(
            self.config, torchrun, isolated=isolated, scratch=scratch
        )

        def new_launcher() -> Launcher:
            self._checkpoint.check_parts_unchanged()  # ranks open their files again
            return factory(self.config, self._device_type)

        self._ranks = RankSession(new_launcher)

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
        """Load a model onto ranks.

        Args:
            model: A folder in diffusers layout, a hub id, a publisher's own folder, a file of a
                transformer, or "demo", the small trained model that comes with the package.
            parallel: The degrees; unset ones follow from the devices and from each request.
            devices: Number of GPUs, or of processes on the CPU. Ignored under torchrun.
            on_progress: Called as components are loaded.
            settings: Any other field of :class:`longtake.configs.engine.EngineConfig`.

        Returns:
            An engine whose ranks are running.

        Raises:
            RefusedInputError: The model or a setting cannot be used.
            RankError: A rank died or hung while loading.
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
        """Whether ranks were started and none is known to have ended."""
        return self._ranks.running

    def start(
        self,
        on_progress: OnProgress = lambda progress: None,
        stop_requested: StopRequested = never,
    ) -> None:
        """Start the ranks and load the model, unless they are running.

        Weights whose place is "auto" go where a request of the model's defaults is rendered
        fastest; :meth:`place_weights` chooses for other requests.

        Raises:
            ModelError: The weights do not fit the architecture.
            RankError: A rank died or hung.
            Stopped: ``stop_requested`` returned true.
        """
        self.place_weights()
        self._ranks.start(on_progress, stop_requested)

    def generate(
        self,
        request: Rendering | str | None = None,
        on_progress: OnProgress = lambda progress: None,
        **fields: Any,
    ) -> Video:
        """Render a request into memory.

            video = engine.generate(prompt="a red cat", num_frames=33, seed=7)

        Args:
            request: A :class:`longtake.VideoRequest`, or a prompt.
            on_progress: Called as ranks finish steps; an exception from it stops all ranks
                between two steps.
            fields: Fields of a request by name, instead of ``request``. Pictures may be paths or
                PIL images; the metadata identify a PIL image by its digest only.

        Returns:
            The frames, the latents and the metadata; under torchrun, frames on rank 0 only.

        Raises:
            RefusedInputError: The request cannot be rendered here. The engine stays usable.
            RankError: A rank died or hung. The next call starts the ranks again, except under
                torchrun. If denoising was finished, the error's ``latents`` can be decoded.
        """
        with request_from_arguments(request, fields) as requested:
            if not (self.spec.pictures or requested.lora):
                resolved: ResolvedRequest | None = self.resolve(requested)
            else:  # only rank 0's host may have the files
                resolved = self._on_rank_0(lambda: self.resolve(requested), on_progress)
            video = self._in_memory(resolved, None, on_progress)
        rendered = video.metadata.request
        video.metadata.request = rendered.model_copy(update=dict.fromkeys(temporary_files(fields)))
        return video

    def decode(
        self,
        latents: npt.ArrayLike | None,
        request: DecodeRequest | None = None,
        on_progress: OnProgress = lambda progress: None,
    ) -> Video:
        """Decode latents into memory, on all ranks.

        Args:
            latents: ``[B, C, F, H, W]`` or ``[C, F, H, W]``, as in :attr:`Video.latents`. Under
                torchrun rank 0's are decoded, and other ranks may pass None.
            request: How to decode; the model's defaults if None.
            on_progress: As in :meth:`generate`.

        Raises:
            RefusedInputError, RankError: As :meth:`generate`.
        """

        def checked() -> tuple[ResolvedDecode, Array]:
            array = checked_latents(latents)
            return self.resolve_decode(request or DecodeRequest(), array.shape), array

        resolved, array = self._on_rank_0(checked, on_progress) or (None, None)
        return self._in_memory(resolved, array, on_progress)

    def render(
        self,
        request: ResolvedDecode | None,
        sink: Sink,
        on_progress: OnProgress = lambda progress: None,
        *,
        snapshots: SnapshotPlan | None = None,
        low_memory: bool = False,
        stop_requested: StopRequested = never,
    ) -> Metadata:
        """Render a resolved request into a sink, which receives each frame once it is decoded.

        Args:
            request: None on ranks of torchrun other than 0 that cannot resolve it; rank 0's counts.
            sink: Receives the latents and the frames, on rank 0.
            on_progress: As in :meth:`generate`.
            snapshots: From :func:`longtake.engine.media.snapshot.plan_snapshots`. The caller
                removes the file once it is no longer needed.
            low_memory: Decode in as little device memory as possible.
            stop_requested: Polled. Ranks in other processes that do not stop within
                ``stop_timeout_s`` are killed; the next rendering starts new ones.

        Raises:
            RefusedInputError, RankError: As :meth:`generate`; exceptions from the sink stop all
                ranks and are raised as they are.
            Stopped: ``stop_requested`` returned true.
        """

        def prepare() -> tuple[Job | None, JobInputs]:
            if request is None:
                return None, NO_INPUTS
            job, pictures = self._job_of(request)
            options = {"snapshots": snapshots, "low_memory": low_memory}
            return job.model_copy(update=options), pictures

        known = [request] if isinstance(request, ResolvedRequest) else []
        self.place_weights(known)
        loras = LoraChoice.of(known[0]) if known else NO_LORAS
        return self._metadata(*self._ranks.run(prepare, sink, on_progress, stop_requested, loras))

    def decode_into(
        self,
        sink: Sink,
        request: ResolvedDecode | None,
        latents: Array | None,
        on_progress: OnProgress = lambda progress: None,
    ) -> Metadata:
        """Decode latents into a sink, which receives each frame once it is decoded.

        Args:
            sink: Receives the frames, on rank 0.
            request: From :meth:`resolve_decode`; None on ranks of torchrun other than 0.
            latents: ``[B, C, F, H, W]``; None on ranks of torchrun other than 0.
            on_progress: As in :meth:`generate`.

        Raises:
            RefusedInputError, RankError: As :meth:`render`.
        """

        def prepare() -> tuple[Job | None, JobInputs]:
            if request is None:
                return None, NO_INPUTS
            dims = ParallelDims(ulysses_degree=self.config.devices)
            inputs = NO_INPUTS if latents is None else {LATENTS: latents}
            return Job.of(request, dims, inputs=[LATENTS]), inputs

        self.place_weights()
        return self._metadata(*self._ranks.run(prepare, sink, on_progress))

    def close(self) -> None:
        """End all ranks, which releases the model."""
        self._ranks.close()

    def __enter__(self) -> VideoEngine:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def can_resolve(self, request: Rendering) -> bool:
        """Whether this process can resolve a request.

        Under torchrun, only rank 0's host may have its files. Other ranks then pass None to
        :meth:`render`.
        """
        return self.writes or not (request.picture_paths or request.lora)

    def _job_of(self, request: ResolvedDecode) -> tuple[Job, JobInputs]:
        """The job that renders a request, and the pixels of its pictures."""
        assert isinstance(request, ResolvedRequest)
        check_taken(request, self.spec)
        files = self._pictures_of(request)
        dims = self.layouts.choose(request).dims
        pictures = {name: read_picture(*each, name).pixels for name, each in files.items()}
        return Job.of(request, dims, inputs=pictures), pictures

    def _on_rank_0(
        self, resolve: Callable[[], ResolvedT], on_progress: OnProgress
    ) -> ResolvedT | None:
        """The result on rank 0, None on others. All ranks of torchrun raise rank 0's refusal."""
        try:
            return resolve() if self.writes else None
        except RefusedInputError as error:
            if self._under_torchrun:
                self.place_weights()
                self._ranks.refuse(error, on_progress)
            raise

    def _in_memory(
        self, request: ResolvedDecode | None, latents: Array | None, on_progress: OnProgress
    ) -> Video:
        """Render a request into memory; with latents, only decode them."""
        sink = FramesInMemory(0 if request is None else self.num_frames_of(request), latents)
        try:
            if latents is None:
                metadata = self.render(request, sink, on_progress)
            else:
                metadata = self.decode_into(sink, request, latents, on_progress)
        except EngineError as error:
            error.latents = sink.all_latents if sink.all_latents.size else None
            raise
        for warning in metadata.warnings():
            logger.warning("%s", warning)
        return Video(sink.batch, sink.all_latents, metadata, self.writes)

    def _metadata(self, job: Job, reports: list[RankReport]) -> Metadata:
        if reports[0].snapshot_failure:
            logger.warning("snapshots could not be written: %s", reports[0].snapshot_failure)
        kernel = reports[0].attention_kernel or self.config.attention_kernel
        why = ""
        if not job.from_latents:
            assert isinstance(job.request, ResolvedRequest)
            why = self.layouts.choose(job.request).why
        return Metadata(
            job.request,
            self.config.model_copy(update={"attention_kernel": kernel}),
            job.dims,
            {"loading": self._ranks.loading_s, **reports[0].seconds},
            reports,
            self.num_frames_of(job.request),
            why=why,
        )
