"""Compares what each layout renders with what one rank renders, step by step.

One rank's values are kept in files and compared array by array, so that memory never holds more
than two arrays, however long the video.
"""

from __future__ import annotations

import itertools
import math
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from longtake.configs.engine import EngineConfig
from longtake.configs.parallel import ParallelConfig
from longtake.configs.request import ResolvedRequest
from longtake.engine.job import Job, JobRun
from longtake.engine.launch.choose_launcher import launcher_factory
from longtake.engine.launch.launcher import Launcher
from longtake.engine.media.arrays import Array
from longtake.engine.media.pictures.picture import noise_pictures
from longtake.engine.media.sinks import NullSink
from longtake.engine.planning.layouts import NO_SECOND_PASS, candidate_layouts
from longtake.engine.tools.differences import max_error, psnr_db, relative_error
from longtake.errors import EngineError, LayoutError, RefusedInputError
from longtake.parallel import ParallelDims
from longtake.pipelines.runtime.progress import OnProgress, Progress
from longtake.pipelines.runtime.trace_points import BRANCHES, TracePoint, TraceRequest
from longtake.pipelines.spec import ModelSpec

TOLERANCES = {"float32": 1e-4, "bfloat16": 5e-2, "float16": 5e-2}
"""The largest difference of latents attributed to rounding, by dtype."""


@dataclass(frozen=True)
class Case:
    """A request, and the layout that is compared with one rank.

    Attributes:
        dims: The layout.
        request: The request.
        pictures: Request fields of the pictures that the model needs.
    """

    dims: ParallelDims
    request: ResolvedRequest
    pictures: tuple[str, ...] = ()


@dataclass(frozen=True)
class Divergence:
    """Where a layout first differs from one rank by more than the tolerance.

    Attributes:
        step: The first step whose latents differ, counted from 1.
        block: The first block of that step whose output differs, counted from 1. 0: the input of
            the first block differs already. None: no block differs by itself, so the cause comes
            after them or is many small differences.
        num_blocks: Number of blocks of the denoiser.
        name: Name of the block in the denoiser.
        branch: Branch of classifier-free guidance that the block was computed for.
        error: Relative error of the block's output, by
            :func:`~longtake.engine.tools.differences.relative_error`.
    """

    step: int
    block: int | None = None
    num_blocks: int = 0
    name: str = ""
    branch: str = BRANCHES[0]
    error: float = 0.0


@dataclass(frozen=True)
class Comparison:
    """The differences between one layout and one rank.

    Attributes:
        case: The request and the layout.
        errors: Largest difference of the latents after each step; NaN if any is NaN.
        psnr_db: PSNR of the final latents; infinite if they are equal.
        kernel: Name of the layout's attention kernel.
        divergence: Where they diverge; None if every step is within the tolerance.
    """

    case: Case
    errors: list[float]
    psnr_db: float
    kernel: str
    divergence: Divergence | None = None

    @property
    def max_error(self) -> float:
        """The largest error of all steps; NaN if any is NaN."""
        return float(np.max(self.errors))


def layouts_of(devices: int, *, num_passes: int) -> list[ParallelDims]:
    """Every layout of this many ranks; with two passes, also those with both side by side."""
    return candidate_layouts(ParallelConfig(), devices, num_heads=1, num_passes=num_passes)


def cases_of(
    layouts: Sequence[ParallelDims],
    devices: int,
    plain: ResolvedRequest,
    guided: ResolvedRequest | None,
    pictures: Sequence[str] = (),
) -> list[Case]:
    """Each layout with the request that it can render.

    Args:
        layouts: Requested layouts; empty for all layouts of the devices.
        devices: Number of ranks.
        plain: The request for layouts that compute one pass at a time.
        guided: The request with classifier-free guidance, for layouts that compute two passes side
            by side; None excludes these layouts.
        pictures: Request fields of the pictures that the model needs.

    Raises:
        LayoutError: A layout needs another number of ranks, or a second pass that is missing.
    """
    cases = []
    for dims in dict.fromkeys(
        layouts or layouts_of(devices, num_passes=1 if guided is None else 2)
    ):
        if dims.cfg_degree > 2:
            raise LayoutError(
                f"layout={dims.name} has cfg_degree={dims.cfg_degree}, and classifier-free "
                "guidance has two passes: the first of three numbers must be 1 or 2"
            )
        if dims.world_size != devices:
            alternative = layouts_of(devices, num_passes=1)[0].name
            raise LayoutError(
                f"layout={dims.name} needs {dims.world_size} ranks, got devices={devices}: try "
                f"devices={dims.world_size}, or layout={alternative}"
            )
        if dims.cfg_degree == 2 and guided is None:
            raise LayoutError(
                f"layout={dims.name}: {NO_SECOND_PASS}; turn guidance on, or begin the layout "
                "with 1"
            )
        request = guided if dims.cfg_degree == 2 else plain
        assert request is not None
        cases.append(Case(dims, request, tuple(pictures)))
    return cases


def uneven_size(spec: ModelSpec, devices: int) -> dict[str, int]:
    """The smallest video whose tokens divide evenly over no layout of the devices.

    Its numbers of tokens along time, height and width are odd, above 1, and coprime to ``devices``.
    There are at least two tokens per device.

    Args:
        spec: The model.
        devices: Number of ranks.

    Returns:
        ``num_frames``, ``height`` and ``width`` of a request.
    """
    odd = [each for each in range(3, 3 * devices + 9, 2) if math.gcd(each, devices) == 1]
    frames, rows, columns = next(
        (few, few, more) for few, more in itertools.pairwise(odd) if few * few * more >= 2 * devices
    )
    return {
        "num_frames": (frames - 1) * spec.frames_multiple + spec.fewest_frames,
        "height": rows * spec.size_multiple,
        "width": columns * spec.size_multiple,
    }


def verify(
    config: EngineConfig,
    cases: Sequence[Case],
    tolerance: float,
    on_progress: OnProgress = lambda progress: None,
) -> list[Comparison]:
    """Render each case on one rank and in its layout, and compare them step by step.

    A step diverges if a value of its latents differs by more than ``tolerance`` or is NaN. A layout
    that diverges is rendered again to compare the blocks of its first such step, in both passes of
    guidance. A block diverges if its relative error, by
    :func:`~longtake.engine.tools.differences.relative_error`, exceeds ``tolerance``.

    Args:
        config: Configuration as resolved by an engine.
        cases: Requests and layouts of ``config.devices`` ranks.
        tolerance: Largest difference that does not count.
        on_progress: Called as ranks make progress.

    Raises:
        RefusedInputError: The model or a layout cannot be rendered.
        EngineError: A rank died or hung.
    """
    alone = config.model_copy(update={"devices": 1})

    def launcher(config: EngineConfig, *, isolated: bool) -> Launcher:
        make = launcher_factory(config, None, isolated=isolated, scratch=None)
        return make(config, config.device)

    return Verification(
        lambda: launcher(alone, isolated=False),
        lambda: launcher(config, isolated=True),
        tolerance,
        on_progress,
    ).run(cases)


class Verification:
    """Compares layouts with one rank, on ranks of any launcher.

    Args:
        one_rank: Makes the launcher of one rank. It is closed before the other one starts, since
            a device may not hold two models.
        all_ranks: Makes the launcher of the layouts' ranks.
        tolerance: Largest difference that does not count.
        on_progress: Called as ranks make progress.
    """

    def __init__(
        self,
        one_rank: Callable[[], Launcher],
        all_ranks: Callable[[], Launcher],
        tolerance: float,
        on_progress: OnProgress,
    ) -> None:
        self._one_rank = one_rank
        self._all_ranks = all_ranks
        self._tolerance = tolerance
        self._on_progress = on_progress

    def run(self, cases: Sequence[Case]) -> list[Comparison]:
        """See :func:`verify`."""
        by_step = self._compare([(case, TraceRequest()) for case in cases])
        first_steps = {
            index: step
            for index, compared in enumerate(by_step)
            if (step := self._first_divergence(compared.errors))
        }
        diverging = [(cases[index], TraceRequest(step)) for index, step in first_steps.items()]
        by_block = dict(zip(first_steps, self._compare(diverging), strict=True))
        return [
            Comparison(
                case,
                compared.errors,
                compared.psnr_db,
                compared.kernel,
                self._locate(first_steps[index], by_block[index].blocks)
                if index in first_steps
                else None,
            )
            for index, (case, compared) in enumerate(zip(cases, by_step, strict=True))
        ]

    def _compare(self, traced_cases: Sequence[tuple[Case, TraceRequest]]) -> list[_Compared]:
        """Render each case on one rank, then in its layout, and compare what is recorded."""
        if not traced_cases:
            return []
        with tempfile.TemporaryDirectory(prefix="longtake-verify-") as folder:
            recorded = self._record(traced_cases, Path(folder))
            compared = []
            requests = [case.request for case, _ in traced_cases]
            with self._started(self._all_ranks, requests) as render:
                for case, trace in traced_cases:
                    sink = _Compared(recorded[case.request, trace])
                    sink.kernel = render(case, trace, sink, f"layout {case.dims.name}")
                    compared.append(sink)
            return compared

    def _record(
        self, traced_cases: Sequence[tuple[Case, TraceRequest]], folder: Path
    ) -> dict[tuple[ResolvedRequest, TraceRequest], _Recorded]:
        """Render each request on one rank, and keep what is recorded in files."""
        recorded = {}
        alone = ((replace(case, dims=ParallelDims()), trace) for case, trace in traced_cases)
        distinct = list(dict.fromkeys(alone))
        with self._started(self._one_rank, [case.request for case, _ in distinct]) as render:
            for index, (case, trace) in enumerate(distinct):
                sink = _Recorded(folder / str(index))
                render(case, trace, sink, "one rank")
                recorded[case.request, trace] = sink
        return recorded

    @contextmanager
    def _started(
        self, make: Callable[[], Launcher], requests: Sequence[ResolvedRequest]
    ) -> Iterator[_Render]:
        """Yields a function that renders a case and returns the name of the attention kernel.

        Args:
            make: Makes the launcher.
            requests: The requests of all cases, whose steps are the total of the progress.
        """
        launcher, done = make(), 0
        total = sum(request.num_inference_steps for request in requests)

        def render(case: Case, trace: TraceRequest, sink: NullSink, name: str) -> str:
            nonlocal done
            done_before = done
            pictures = noise_pictures(case.request, case.pictures)
            job = Job.of(case.request, case.dims, inputs=pictures, trace=trace)

            def count(progress: Progress) -> None:
                steps = done_before + progress.done
                self._on_progress(Progress("denoising", steps, total, name))

            try:
                reports = launcher.render(JobRun(job, sink, count, pictures))
            except RefusedInputError as error:
                raise type(error)(f"{name}: {error}") from error
            done += case.request.num_inference_steps
            return reports[0].attention_kernel

        try:
            self._on_progress(Progress("loading"))
            launcher.start(self._on_progress)
            yield render
        finally:
            launcher.close()

    def _first_divergence(self, errors: Sequence[float]) -> int | None:
        """The first step, counted from 1, outside the tolerance, as NaN always is."""
        steps = (step for step, error in enumerate(errors, start=1) if not self._within(error))
        return next(steps, None)

    def _within(self, error: float) -> bool:
        return error <= self._tolerance

    def _locate(self, step: int, blocks: dict[TracePoint, float]) -> Divergence:
        """The first block that diverges, in the positive branch if it does so in both."""
        num_blocks = max((point.block or 0 for point in blocks), default=0)
        for point, error in sorted(
            blocks.items(), key=lambda item: (item[0].block, BRANCHES.index(item[0].branch))
        ):
            if not self._within(error):
                return Divergence(step, point.block, num_blocks, point.name, point.branch, error)
        return Divergence(step, num_blocks=num_blocks)


_Render = Callable[[Case, TraceRequest, NullSink, str], str]


class _Recorded(NullSink):
    """A sink that writes traced values to files in a folder."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir()
        self._folder = folder

    def traced(self, point: TracePoint, values: Array) -> None:
        """Write the values to a file."""
        path = self._path(point)
        try:
            np.save(path, values)
        except OSError as error:
            raise EngineError(f"{path} cannot be written: {error.strerror}") from error

    def values(self, point: TracePoint) -> Array:
        """The values recorded at a point."""
        values: Array = np.load(self._path(point))
        return values

    def _path(self, point: TracePoint) -> Path:
        return self._folder / f"{point.step}-{point.block}-{point.branch}.npy"


class _Compared(NullSink):
    """A sink that compares traced values with recorded ones.

    Args:
        expected: The recorded values.

    Attributes:
        errors: Largest difference of the latents, by step.
        psnr_db: PSNR of the latents of the last step so far.
        blocks: Relative error of each traced block output.
        kernel: Name of the attention kernel.
    """

    def __init__(self, expected: _Recorded) -> None:
        self._expected = expected
        self.errors: list[float] = []
        self.psnr_db = math.nan
        self.blocks: dict[TracePoint, float] = {}
        self.kernel = ""

    def traced(self, point: TracePoint, values: Array) -> None:
        """Compare the values."""
        expected = self._expected.values(point)
        if point.block is None:
            self.errors.append(max_error(values, expected))
            self.psnr_db = psnr_db(values, expected)
        else:
            self.blocks[point] = relative_error(values, expected)
