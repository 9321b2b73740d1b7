"""What ``longtake bench`` measures beside a profile, as Markdown: a suite each."""

from __future__ import annotations

import platform
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from typing import Literal

import numpy as np
import psutil
import torch

from longtake.configs.engine import EngineConfig
from longtake.configs.hardware import Dtype, Hardware
from longtake.configs.request import VideoRequest
from longtake.engine.engine import VideoEngine
from longtake.engine.job import Job, RankReport
from longtake.engine.launch.launcher import InProcess, Launcher
from longtake.engine.launch.local_processes import LocalProcesses
from longtake.engine.media.picture import any_picture
from longtake.engine.planning.layouts import candidates
from longtake.engine.planning.planner import dtypes
from longtake.engine.planning.prediction import Setting, predict
from longtake.engine.request import resolve
from longtake.engine.tools.bench import measures
from longtake.engine.tools.trial import on_ranks
from longtake.engine.worker import NullSink
from longtake.pipelines import registry
from longtake.pipelines.checkpoint import Checkpoint
from longtake.pipelines.spec import ModelSpec
from longtake.version import __version__

_DEADLINE_S = 1200.0
_STEPS = 6


@dataclass(frozen=True)
class Suites:
    """The suites, for one model on one number of ranks.

    Args:
        config: the engine's; its model is opened, and its ranks are started where a suite renders.
        hardware: what predictions are made from.
        rounds: of which the median counts.
        say: called with what is measured next.
    """

    config: EngineConfig
    device_type: Literal["cpu", "cuda"]
    hardware: Hardware
    rounds: int
    say: Callable[[str], None]

    def kernels(self) -> str:
        """Each local attention kernel."""
        self.say("kernels")
        spec, dtype = self._spec(), self._dtypes()[0]
        answer = on_ranks(
            measures.kernels,
            1,
            self.device_type,
            _DEADLINE_S,
            dtype=dtype,
            head_size=spec.head_size,
            rounds=self.rounds,
        )[0]
        lines = [f"| kernel, {dtype}, heads of {spec.head_size} | TFLOP/s |", "|---|---|"]
        for name, found in answer.items():
            shown = f"cannot: {found}" if isinstance(found, str) else f"{found / 1e12:.4g}"
            lines.append(f"| {name} | {shown} |")
        return "\n".join(lines)

    def links(self) -> str:
        """All-to-alls and ring hops, by the ranks that take part."""
        if self.config.devices == 1:
            return "One rank has no links: pass --devices 2 or more."
        self.say("links")
        answer = on_ranks(
            measures.links, self.config.devices, self.device_type, _DEADLINE_S, rounds=self.rounds
        )[0]
        lines = [
            "| ranks | all-to-all GB/s a rank | ring hop GB/s | latency ms |",
            "|---|---|---|---|",
        ]
        for each in answer:
            lines.append(
                f"| {each['ranks']} | {each['exchange_bytes_per_s'] / 1e9:.3g} "
                f"| {each['hop_bytes_per_s'] / 1e9:.3g} | {1e3 * each['latency_s']:.3g} |"
            )
        return "\n".join(lines)

    def step(self) -> str:
        """A denoising step in every layout, beside what is predicted of it."""
        spec = self._spec()
        request = resolve(
            VideoRequest(prompt="a red circle", seed=0, num_inference_steps=_STEPS), spec
        ).model_copy(update={"output_type": "latents"})
        dtype, vae_dtype = self._dtypes()
        setting = Setting(
            spec=spec,
            hardware=self.hardware,
            request=request,
            dtype=dtype,
            vae_dtype=vae_dtype,
            text_tokens=spec.text_tokens(request),
        )
        lines = [
            "| layout | measured s a step | predicted | predicted / it | MB sent | peak GiB |",
            "|---|---|---|---|---|---|",
        ]
        launcher: Launcher = (
            InProcess(self.config, self.device_type)
            if self.config.devices == 1
            else LocalProcesses(self.config, self.device_type)
        )
        self.say("loading")
        launcher.start(lambda progress: None)
        try:
            for dims in candidates(
                self.config.parallel,
                self.config.devices,
                num_heads=spec.num_heads,
                true_cfg=False,
            ):
                self.say(f"a step on {dims.name}")
                reports: list[RankReport] = []
                for _ in range(2):  # the first also loads and allocates what lasts
                    job = Job.of(request, dims)
                    reports = launcher.render(
                        job, NullSink(), lambda progress: None, any_picture(request)
                    )
                measured = max(each.seconds["denoising"] for each in reports) / _STEPS
                predicted = predict(
                    setting, dims, shard_weights=self.config.parallel.shard_weights
                ).step.seconds
                sent = sum(each.bytes_sent["denoising"] for each in reports) / _STEPS
                peak = max(each.peak_memory_bytes for each in reports)
                lines.append(
                    f"| {dims.name} | {measured:.4g} | {predicted:.4g} "
                    f"| {predicted / measured:.2f} | {sent / 1e6:.4g} | {peak / 2**30:.3f} |"
                )
        finally:
            launcher.close()
        return "\n".join(lines)

    def decode(self) -> str:
        """Decoding a video of the model's own size over all ranks."""
        self.say("decoding")
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
        return (
            "| frames | seconds | frames a second |\n|---|---|---|\n"
            f"| {frames} of {request.width}x{request.height} | {min(seconds):.3g} "
            f"| {frames / min(seconds):.3g} |"
        )

    def _spec(self) -> ModelSpec:
        return registry.inspect(Checkpoint.open(self.config.model, self.config.revision))

    def _dtypes(self) -> tuple[Dtype, Dtype]:
        return dtypes(self.config, self._spec(), self.device_type)


def environment(device_type: str) -> str:
    """Hardware and versions, in a line."""
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
