"""The suites of ``longtake bench``, each of which returns a table in Markdown."""

from __future__ import annotations

import platform
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from typing import Literal

import numpy as np
import psutil
import torch

from longtake.configs.engine import EngineConfig
from longtake.configs.hardware import Hardware
from longtake.configs.request import VideoRequest
from longtake.engine.engine import VideoEngine
from longtake.engine.job import Job, JobRun
from longtake.engine.launch.choose_launcher import launcher_factory
from longtake.engine.launch.launcher import Launcher
from longtake.engine.media.pictures.picture import noise_pictures
from longtake.engine.media.sinks import NullSink
from longtake.engine.planning.layouts import candidate_layouts
from longtake.engine.planning.plan_input import PlanInput
from longtake.engine.planning.prediction import predict
from longtake.engine.rank_report import RankReport
from longtake.engine.resolve.request import resolve
from longtake.engine.tools.bench import measures
from longtake.engine.tools.bench.markdown import markdown_table
from longtake.engine.tools.trial import on_ranks
from longtake.pipelines import registry
from longtake.pipelines.loading.checkpoint import Checkpoint
from longtake.pipelines.spec import ModelSpec
from longtake.version import __version__

_DEADLINE_S = 1200.0
_STEPS = 6


@dataclass(frozen=True)
class Suites:
    """The suites, for one model on one number of ranks.

    Args:
        config: Configuration of the engine that is measured.
        device_type: "cpu" or "cuda".
        hardware: Profile that predictions are made from.
        rounds: Rounds whose median counts.
        on_measure: Called with what is measured next.
    """

    config: EngineConfig
    device_type: Literal["cpu", "cuda"]
    hardware: Hardware
    rounds: int
    on_measure: Callable[[str], None]

    def kernels(self) -> str:
        """Speed of each local attention kernel."""
        self.on_measure("kernels")
        spec, dtype = self._spec(), self.config.compute_dtype(self.device_type)
        (measured,) = on_ranks(
            measures.kernels,
            1,
            self.device_type,
            _DEADLINE_S,
            dtype=dtype,
            head_size=spec.head_size,
            rounds=self.rounds,
        )
        return markdown_table(
            [f"kernel, {dtype}, heads of {spec.head_size}", "TFLOP/s"],
            [
                [name, f"cannot: {rate}" if isinstance(rate, str) else f"{rate / 1e12:.4g}"]
                for name, rate in measured.items()
            ],
        )

    def links(self) -> str:
        """Speed of all-to-alls and ring hops, by number of ranks."""
        if self.config.devices == 1:
            return "One rank has no links: pass --devices 2 or more."
        self.on_measure("links")
        measured = on_ranks(
            measures.links, self.config.devices, self.device_type, _DEADLINE_S, rounds=self.rounds
        )[0]
        return markdown_table(
            ["ranks", "all-to-all GB/s a rank", "ring hop GB/s", "latency ms"],
            [
                [
                    str(each["ranks"]),
                    f"{each['exchange_bytes_per_s'] / 1e9:.3g}",
                    f"{each['hop_bytes_per_s'] / 1e9:.3g}",
                    f"{1e3 * each['latency_s']:.3g}",
                ]
                for each in measured
            ],
        )

    def step(self) -> str:
        """Measured and predicted time of a denoising step, in every layout."""
        spec = self._spec()
        request = resolve(
            VideoRequest(prompt="a red circle", seed=0, num_inference_steps=_STEPS), spec
        ).model_copy(update={"output_type": "latents"})
        plan_input = PlanInput.for_engine(self.config, spec, self.hardware, request)
        columns = (
            "layout",
            "measured s a step",
            "predicted",
            "predicted / it",
            "MB sent",
            "peak GiB",
        )
        rows = []
        parallel, devices = self.config.parallel, self.config.devices
        with self._started() as launcher:
            for dims in candidate_layouts(
                parallel, devices, num_heads=spec.num_heads, num_passes=1
            ):
                self.on_measure(f"a step on {dims.name}")
                pictures = noise_pictures(request, spec.required_pictures)
                job = Job.of(request, dims, inputs=pictures)
                run = JobRun(job, NullSink(), inputs=pictures)
                for _ in range(2):  # the first also loads libraries and allocates lasting buffers
                    reports = launcher.render(run)
                predicted = predict(plan_input, dims)
                rows.append(_step_row(dims.name, reports, predicted.step.seconds))
        return markdown_table(columns, rows)

    def decode(self) -> str:
        """Time of decoding a video of the model's default size on all ranks."""
        self.on_measure("decoding")
        spec = self._spec()
        request = resolve(VideoRequest(prompt="a red circle", seed=0), spec)
        latents = np.random.default_rng(0).standard_normal(spec.grid(request).shape, np.float32)
        config = self.config.model_copy(update={"autoencoder_only": True})
        with VideoEngine(config) as engine:
            seconds = []
            for _ in range(2):
                video = engine.decode(latents)
                seconds.append(video.metadata.seconds["decoding"])
        frames = video.metadata.num_frames
        size = f"{frames} of {request.width}x{request.height}"
        row = [size, f"{min(seconds):.3g}", f"{frames / min(seconds):.3g}"]
        return markdown_table(["frames", "seconds", "frames a second"], [row])

    @contextmanager
    def _started(self) -> Iterator[Launcher]:
        """Ranks that have loaded the model, and are ended afterwards."""
        make = launcher_factory(self.config, None, isolated=False, scratch=None)
        launcher = make(self.config, self.device_type)
        self.on_measure("loading")
        launcher.start(lambda progress: None)
        try:
            yield launcher
        finally:
            launcher.close()

    def _spec(self) -> ModelSpec:
        return registry.inspect(Checkpoint.open(self.config.model, self.config.revision))


def _step_row(layout: str, reports: Sequence[RankReport], predicted_s: float) -> list[str]:
    """A row of the step suite's table."""
    measured_s = max(each.seconds["denoising"] for each in reports) / _STEPS
    sent = sum(each.bytes_sent["denoising"] for each in reports) / _STEPS
    peak = max(each.peak_memory_bytes for each in reports)
    return [
        layout,
        f"{measured_s:.4g}",
        f"{predicted_s:.4g}",
        f"{predicted_s / measured_s:.2f}",
        f"{sent / 1e6:.4g}",
        f"{peak / 2**30:.3f}",
    ]


def environment(device_type: str) -> str:
    """Hardware and versions in one line."""
    if device_type == "cuda":
        device = f"{torch.cuda.device_count()} x {torch.cuda.get_device_name(0)}"
    else:
        gib = psutil.virtual_memory().total / 2**30
        device = f"{platform.machine()} CPU, {psutil.cpu_count()} logical cores, {gib:.0f} GiB"
    versions = [f"longtake {__version__}", f"Python {platform.python_version()}"]
    for library in ("torch", "diffusers", "flash-attn", "xformers"):
        try:
            versions.append(f"{library} {version(library)}")
        except PackageNotFoundError:
            continue
    return f"{device}; {', '.join(versions)}"
