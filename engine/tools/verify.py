"""Whether every layout renders what one rank renders: both are recorded on the way and compared.

What one rank gives is kept in files and compared array by array, so that memory holds two arrays at
a time however long a video is.
"""

from __future__ import annotations

import itertools
import math
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from longtake.configs.engine import EngineConfig
from longtake.configs.request import ResolvedRequest
from longtake.engine.arrays import Array
from longtake.engine.job import Job
from longtake.engine.launch.in_process import InProcess
from longtake.engine.launch.launcher import Launcher
from longtake.engine.launch.local_processes import LocalProcesses
from longtake.engine.media.picture import any_picture
from longtake.engine.sinks import NullSink
from longtake.engine.tools.differences import max_error, psnr_db, relative_error
from longtake.errors import EngineError, LayoutError, RefusedInputError
from longtake.parallel import ParallelDims
from longtake.pipelines.progress import OnProgress, Progress
from longtake.pipelines.spec import ModelSpec
from longtake.pipelines.trace import BRANCHES, TracePoint, TraceRequest

TOLERANCES = {"float32": 1e-4, "bfloat16": 5e-2, "float16": 5e-2}
"""The largest difference of latents that is put down to rounding, by dtype."""


@dataclass(frozen=True)
class Case:
    """A request, and the layout in which it is compared with one rank."""

    dims: ParallelDims
    request: ResolvedRequest


@dataclass(frozen=True)
class Parting:
    """Where a layout first gives something else than one rank.

    Attributes:
        step: counted from 1; its latents differ by more than the tolerance.
        block: the first block of that step, counted from 1, whose output does; 0: what goes into
            the first does already. None: no block's does, so it is what comes after them, or many
            small differences.
        num_blocks: that the denoiser has.
        name: of the block in the denoiser.
        branch: of true CFG, that the block was computed for.
        error: relative error of its output (longtake.engine.tools.differences.relative_error).
    """

    step: int
    block: int | None = None
    num_blocks: int = 0
    name: str = ""
    branch: str = BRANCHES[0]
    error: float = 0.0


@dataclass(frozen=True)
class Comparison:
    """What one layout gave, beside what one rank gave.

    Attributes:
        errors: largest difference of the latents after each step; NaN where one is no number.
        psnr_db: of the last latents; infinite where they are the same.
        kernel: the layout's attention kernel.
        parting: None where every step is within the tolerance.
    """

    case: Case
    errors: list[float]
    psnr_db: float
    kernel: str
    parting: Parting | None = None

    @property
    def max_error(self) -> float:
        """The largest of all steps; NaN where one is."""
        return float(np.max(self.errors))


def layouts_of(devices: int, *, true_cfg: bool) -> list[ParallelDims]:
    """Every layout of so many ranks; those with two branches side by side if there are two."""
    return [
        ParallelDims(cfg_degree=cfg, ring_degree=devices // cfg // ulysses, ulysses_degree=ulysses)
        for cfg in ((1, 2) if true_cfg and devices % 2 == 0 else (1,))
        for ulysses in range(devices // cfg, 0, -1)
        if devices // cfg % ulysses == 0
    ]


def cases_of(
    layouts: Sequence[ParallelDims],
    devices: int,
    plain: ResolvedRequest,
    guided: ResolvedRequest | None,
) -> list[Case]:
    """Each layout with the request that it can render.

    Args:
        layouts: that were asked for; all of so many devices if there are none.
        plain: for layouts of one branch.
        guided: with true CFG, for layouts with two branches side by side; None: there are none.

    Raises:
        LayoutError: a layout does not take these devices, or there is no second branch.
    """
    cases = []
    for dims in dict.fromkeys(layouts or layouts_of(devices, true_cfg=guided is not None)):
        if dims.cfg_degree > 2:
            raise LayoutError(
                f"layout={dims.name} has cfg_degree={dims.cfg_degree}, and true CFG has two "
                "branches: the first of three numbers must be 1 or 2"
            )
        if dims.world_size != devices:
            works = layouts_of(devices, true_cfg=False)[0].name
            raise LayoutError(
                f"layout={dims.name} needs {dims.world_size} ranks, got devices={devices}: try "
                f"devices={dims.world_size}, or layout={works}"
            )
        if dims.cfg_degree == 2 and guided is None:
            raise LayoutError(
                f"layout={dims.name} without true CFG has no second branch to compute beside the "
                "first: raise true_cfg_scale above 1 or leave it out, or begin the layout with 1"
            )
        request = guided if dims.cfg_degree == 2 else plain
        assert request is not None
        cases.append(Case(dims, request))
    return cases


def uneven_size(spec: ModelSpec, devices: int) -> dict[str, int]:
    """The smallest video whose tokens divide by nothing that so many devices are split into.

    Its tokens along time, height and width are odd numbers above 1 that have no factor in common
    with ``devices``. Together they are two a device at least.

    Returns:
        ``num_frames``, ``height`` and ``width`` of a request.
    """
    odd = [each for each in range(3, 3 * devices + 9, 2) if math.gcd(each, devices) == 1]
    frames, rows, columns = next(
        (few, few, more) for few, more in itertools.pairwise(odd) if few * few * more >= 2 * devices
    )
    return {
        "num_frames": (frames - 1) * spec.frames_multiple + 1,
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

    A step parts where a value of its latents differs by more than ``tolerance``, or is no number.
    Where a layout parts, it is rendered again for the blocks of its first such step: a block parts
    where a value of its output differs by more than ``tolerance`` times that value and the root
    mean square of the output together. Of true CFG the blocks of both branches are compared.

    Args:
        config: as an engine has resolved it.
        cases: one request for each layout of ``config.devices`` ranks.

    Raises:
        RefusedInputError: the model or a layout cannot be rendered, with the kernel say.
        EngineError: a rank died or hung.
    """
    device_type = config.device
    alone = config.model_copy(update={"devices": 1})
    return Verification(
        lambda: InProcess(alone, device_type),
        lambda: LocalProcesses(config, device_type),
        tolerance,
        on_progress,
    ).run(cases)


class Verification:
    """What compares layouts with one rank, whatever starts them.

    Args:
        one_rank, all_ranks: make the launcher of one rank, and of as many as the layouts have. One
            is closed before another is started, since a device may not hold two models.
        tolerance, on_progress: see :func:`verify`.
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
        found = self._compare([(case, TraceRequest()) for case in cases])
        first_steps = {
            at: step for at, each in enumerate(found) if (step := self._first_parted(each.errors))
        }
        again = [(cases[at], TraceRequest(step)) for at, step in first_steps.items()]
        with_blocks = dict(zip(first_steps, self._compare(again), strict=True))
        return [
            Comparison(
                case,
                each.errors,
                each.psnr_db,
                each.kernel,
                self._parting(first_steps[at], with_blocks[at].blocks)
                if at in first_steps
                else None,
            )
            for at, (case, each) in enumerate(zip(cases, found, strict=True))
        ]

    def _compare(self, asked: Sequence[tuple[Case, TraceRequest]]) -> list[_Compared]:
        """Render each case on one rank, then in its layout, and compare what is recorded."""
        if not asked:
            return []
        with tempfile.TemporaryDirectory(prefix="longtake-verify-") as folder:
            recorded: dict[tuple[ResolvedRequest, TraceRequest], _Recorded] = {}
            wanted = list(dict.fromkeys((case.request, trace) for case, trace in asked))
            with self._started(self._one_rank, [request for request, _ in wanted]) as render:
                for at, (request, trace) in enumerate(wanted):
                    sink = _Recorded(Path(folder, str(at)))
                    render(Job.of(request, ParallelDims(), trace=trace), sink, "one rank")
                    recorded[request, trace] = sink
            compared = []
            with self._started(self._all_ranks, [case.request for case, _ in asked]) as render:
                for case, trace in asked:
                    comparing = _Compared(recorded[case.request, trace])
                    job = Job.of(case.request, case.dims, trace=trace)
                    comparing.kernel = render(job, comparing, f"layout {case.dims.name}")
                    compared.append(comparing)
            return compared

    @contextmanager
    def _started(
        self, make: Callable[[], Launcher], requests: Sequence[ResolvedRequest]
    ) -> Iterator[_Render]:
        """A function that renders one job after the other and returns the attention kernel.

        Args:
            requests: of all jobs, among whose steps those that are done are counted.
        """
        launcher, done = make(), 0
        total = sum(request.num_inference_steps for request in requests)

        def render(job: Job, sink: NullSink, name: str) -> str:
            nonlocal done
            before = done
            assert isinstance(job.request, ResolvedRequest)

            def count(progress: Progress) -> None:
                step = before + progress.done
                self._on_progress(Progress("denoising", step, total, name))

            try:
                reports = launcher.render(job, sink, count, any_picture(job.request))
            except RefusedInputError as error:
                raise type(error)(f"{name}: {error}") from error
            done += job.request.num_inference_steps
            return reports[0].attention_kernel

        try:
            self._on_progress(Progress("loading"))
            launcher.start(self._on_progress)
            yield render
        finally:
            launcher.close()

    def _first_parted(self, errors: Sequence[float]) -> int | None:
        """The first step, counted from 1, that is not within the tolerance: NaN never is."""
        parted = [step for step, error in enumerate(errors, start=1) if not self._within(error)]
        return parted[0] if parted else None

    def _within(self, error: float) -> bool:
        return error <= self._tolerance

    def _parting(self, step: int, blocks: dict[TracePoint, float]) -> Parting:
        """The first block that parts; where both branches' do, the positive one's."""
        num_blocks = max((point.block or 0 for point in blocks), default=0)
        for point, error in sorted(
            blocks.items(), key=lambda item: (item[0].block, BRANCHES.index(item[0].branch))
        ):
            if not self._within(error):
                return Parting(step, point.block, num_blocks, point.name, point.branch, error)
        return Parting(step, num_blocks=num_blocks)


_Render = Callable[[Job, NullSink, str], str]


class _Recorded(NullSink):
    """A sink that keeps what is recorded, in a folder."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir()
        self._folder = folder

    def traced(self, point: TracePoint, values: Array) -> None:
        """Write it to a file."""
        path = self._path(point)
        try:
            np.save(path, values)
        except OSError as error:
            raise EngineError(f"{path} cannot be written: {error.strerror}") from error

    def values(self, point: TracePoint) -> Array:
        """What was recorded at a point."""
        values: Array = np.load(self._path(point))
        return values

    def _path(self, point: TracePoint) -> Path:
        return self._folder / f"{point.step}-{point.block}-{point.branch}.npy"


class _Compared(NullSink):
    """A sink that compares what is recorded with what was recorded before.

    Attributes:
        errors: of the latents, by step.
        psnr_db: of the latents of the last step so far.
        blocks: relative errors of blocks' outputs.
        kernel: the attention kernel.
    """

    def __init__(self, expected: _Recorded) -> None:
        self._expected = expected
        self.errors: list[float] = []
        self.psnr_db = math.nan
        self.blocks: dict[TracePoint, float] = {}
        self.kernel = ""

    def traced(self, point: TracePoint, values: Array) -> None:
        """Compare it."""
        expected = self._expected.values(point)
        if point.block is None:
            self.errors.append(max_error(values, expected))
            self.psnr_db = psnr_db(values, expected)
        else:
            self.blocks[point] = relative_error(values, expected)
