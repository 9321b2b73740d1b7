"""longtake verify finds the step and block of a faulty rank, and no fault in correct ranks."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from functools import cache
from typing import Any

import pytest
import torch

from longtake.cli.command_line import parse
from longtake.cli.commands import verify as command
from longtake.cli.terminal import make_view
from longtake.configs.engine import EngineConfig
from longtake.configs.fields.weights import WeightPlace
from longtake.engine.job import Job, JobRun
from longtake.engine.launch import local_processes
from longtake.engine.launch.in_process import InProcess
from longtake.engine.launch.launcher import Launcher
from longtake.engine.media.arrays import Array
from longtake.engine.media.sinks import NullSink, TraceSink
from longtake.engine.rank_report import RankReport
from longtake.engine.tools.verify import Comparison, Verification, cases_of
from longtake.engine.worker import Worker
from longtake.parallel import ParallelDims
from longtake.pipelines.runtime.progress import Progress
from longtake.pipelines.runtime.trace_points import TracePoint, TraceRequest
from tests.ranks import RankGroups
from tests.rendering import request, world

SIZE: dict[str, Any] = dict(height=48, width=80, num_frames=9, output_type="latents")  # 45 tokens
PLAIN = request(**SIZE)
GUIDED = request(**SIZE, true_cfg_scale=3.0, negative_prompt="red dog")


@dataclass(frozen=True)
class Fault:
    """Wrong weights on one rank.

    Attributes:
        rank: The rank.
        module: Name of the denoiser's module with the wrong weights.
        step: The first step in which they are wrong.
        factor: Factor on all weights of the module.
    """

    rank: int
    module: str
    step: int = 1
    factor: float = 1.1


class OnGroup(Launcher):
    """A launcher over the test ranks, one of which may be faulty."""

    def __init__(self, ranks: RankGroups, config: EngineConfig, fault: Fault | None = None) -> None:
        self._ranks, self._config, self._fault = ranks, config, fault

    def start(self, *rest: Any) -> None:
        pass

    def close(self) -> None:
        pass

    def render(self, run: JobRun) -> list[RankReport]:
        sink, count = run.sink, self._config.devices
        answers = self._ranks.run(count, render_on_rank, self._config, run.job, self._fault)
        (traced_values, reports), *others = answers
        assert not any(others_values for others_values, _ in others)
        assert isinstance(sink, TraceSink)
        for point, values in traced_values:
            sink.traced(point, values)
        return list(reports)


class Recorder(NullSink):
    """A sink that keeps traced values."""

    def __init__(self) -> None:
        self.traced_values: list[tuple[TracePoint, Array]] = []

    def traced(self, point: TracePoint, values: Array) -> None:
        self.traced_values.append((point, values.copy()))


@cache
def worker_of(config: EngineConfig) -> Worker:
    return Worker(config, world(), lambda progress: None)


def render_on_rank(
    config: EngineConfig, job: Job, fault: Fault | None
) -> tuple[list[tuple[TracePoint, Array]], list[RankReport]]:
    """On one rank: the traced values of a job; one rank may be faulty."""
    worker, sink = worker_of(config), Recorder()
    module = None
    if fault is not None and fault.rank == world().rank:
        module = worker.pipeline.denoiser.get_submodule(fault.module)
    saved = [parameter.clone() for parameter in module.parameters()] if module else []

    def break_weights(progress: Progress) -> None:
        assert fault is not None
        if module and (progress.phase, progress.done) == ("denoising", fault.step - 1):
            with torch.no_grad():
                for parameter in module.parameters():
                    parameter.mul_(fault.factor)

    try:
        reports = worker.render(
            JobRun(job, sink, break_weights if fault else lambda progress: None)
        )
    finally:
        if module:
            with torch.no_grad():
                for parameter, before in zip(module.parameters(), saved, strict=True):
                    parameter.copy_(before)
    return sink.traced_values, reports


def compare(
    ranks: RankGroups,
    model: str,
    devices: int,
    *layouts: str,
    fault: Fault | None = None,
    tolerance: float = 1e-4,
    weights: WeightPlace = "resident",
) -> list[Comparison]:
    config = EngineConfig(model=model, devices=devices, weights=weights, text_weights="resident")
    verification = Verification(
        lambda: InProcess(config, "cpu"),
        lambda: OnGroup(ranks, config, fault),
        tolerance,
        lambda progress: None,
    )
    dims = [ParallelDims.parse(text) for text in layouts]
    return verification.run(cases_of(dims, devices, PLAIN, GUIDED))


@pytest.mark.parametrize("devices", [1, 2, 3, 4])
def test_layouts_of_correct_ranks_are_within_the_tolerance(
    ranks: RankGroups, model: str, devices: int
) -> None:
    found = compare(ranks, model, devices)
    assert len(found) == {1: 1, 2: 3, 3: 2, 4: 5}[devices]
    for each in found:
        assert each.divergence is None
        assert len(each.errors) == 3
        assert each.max_error < 1e-4
        assert each.psnr_db > 100
        assert each.kernel == "cpu-flash"


FAULTS = {
    "double block": ("1x1x2", Fault(1, "transformer.transformer_blocks.1"), 2, "positive"),
    "single block, in a ring": (
        "1x3x1",
        Fault(2, "transformer.single_transformer_blocks.0"),
        3,
        "positive",
    ),
    "from the second step on": (
        "1x2x2",
        Fault(3, "transformer.single_transformer_blocks.1", step=2),
        4,
        "positive",
    ),
    "from the last step on": (
        "1x1x3",
        Fault(0, "transformer.transformer_blocks.0", step=3),
        1,
        "positive",
    ),
    "positive branch": ("2x1x2", Fault(1, "transformer.transformer_blocks.0"), 1, "positive"),
    "negative branch": (
        "2x2x1",
        Fault(3, "transformer.single_transformer_blocks.1", step=2),
        4,
        "negative",
    ),
    "before the first block": ("1x1x2", Fault(1, "transformer.x_embedder"), 0, "positive"),
    "after the last block": ("1x1x2", Fault(1, "transformer.proj_out", step=2), None, ""),
    "not a number": (
        "1x2x1",
        Fault(1, "transformer.transformer_blocks.1.attn.to_q", step=2, factor=math.nan),
        2,
        "positive",
    ),
}


@pytest.mark.parametrize("name", FAULTS)
def test_the_step_and_block_of_a_faulty_rank_are_found(
    ranks: RankGroups, model: str, name: str
) -> None:
    layout, fault, block, branch = FAULTS[name]
    dims = ParallelDims.parse(layout)
    (found,) = compare(ranks, model, dims.world_size, layout, fault=fault)
    divergence = found.divergence
    assert divergence is not None
    assert (divergence.step, divergence.block, divergence.num_blocks) == (fault.step, block, 4)
    assert all(error <= 1e-4 for error in found.errors[: fault.step - 1])
    assert not any(error <= 1e-4 for error in found.errors[fault.step - 1 :])
    if block is not None:
        assert divergence.branch == branch
        assert not divergence.error <= 1e-4
        assert fault.module.startswith(divergence.name)
    if math.isnan(fault.factor):
        assert math.isnan(found.max_error) and math.isnan(divergence.error)


def test_only_diverging_layouts_are_rendered_again(ranks: RankGroups, model: str) -> None:
    jobs: list[Job] = []
    fault = Fault(1, "transformer.transformer_blocks.0", step=3)

    class FaultyRing(OnGroup):
        def render(self, run: JobRun) -> list[RankReport]:
            jobs.append(run.job)
            self._fault = fault if run.job.dims.ring_degree > 1 else None
            return super().render(run)

    config = EngineConfig(model=model, devices=2, weights="resident", text_weights="resident")
    verification = Verification(
        lambda: InProcess(config, "cpu"),
        lambda: FaultyRing(ranks, config),
        1e-4,
        lambda progress: None,
    )
    found = verification.run(cases_of([], 2, PLAIN, GUIDED))
    assert [each.divergence is None for each in found] == [True, False, True]
    assert [job.dims.name for job in jobs] == ["1x1x2", "1x2x1", "2x1x1", "1x2x1"]
    assert [job.trace for job in jobs] == [TraceRequest()] * 3 + [TraceRequest(3)]


def test_sharded_weights_are_traced(ranks: RankGroups, model: str) -> None:
    fault = Fault(1, "transformer.single_transformer_blocks.0", step=2)
    (found,) = compare(ranks, model, 2, "1x2", fault=fault, weights="split")
    assert found.divergence is not None
    assert (found.divergence.step, found.divergence.block, found.divergence.num_blocks) == (2, 3, 4)
    assert found.divergence.name == fault.module


@pytest.mark.parametrize(("factor", "step"), [(1.1, 2), (math.nan, 1)])
def test_the_command_names_the_step_and_block(
    ranks: RankGroups,
    model: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: Any,
    factor: float,
    step: int,
) -> None:
    module = "transformer.single_transformer_blocks.0"
    fault = Fault(1, module, step, factor)
    monkeypatch.setattr(
        local_processes,
        "LocalProcesses",
        lambda config, device_type, scratch: OnGroup(ranks, config, fault),
    )
    arguments = ["verify", "a cat", "--model", model, "--devices", "2", "--layout", "1x2"]
    code, out = run_command(arguments, capsys)
    assert code == 1
    assert f"step {step}, block 3 of 4 ({module})" in out
    assert out.splitlines()[-1] == "1 of 1 differ by more than 0.0001: 1x1x2"

    code, out = run_command([*arguments, "--json"], capsys)
    (layout,) = json.loads(out, parse_constant=reject_constant)["layouts"]
    assert code == 1
    assert (layout["parting"]["step"], layout["parting"]["block"]) == (step, 3)
    assert [each["within"] for each in layout["steps"]].index(False) == step - 1
    assert (layout["max_error"] is None) == math.isnan(factor)
    assert run_command([*arguments, "--quiet"], capsys) == (1, "")


def run_command(arguments: list[str], capsys: Any) -> tuple[int, str]:
    _, options = parse(arguments)
    with make_view(quiet=options["quiet"], as_json=options["json"]) as view:
        code = command.run(options, view)
    out: str = capsys.readouterr().out
    return code, out


def reject_constant(constant: str) -> None:
    raise AssertionError(f"{constant} is not JSON")
