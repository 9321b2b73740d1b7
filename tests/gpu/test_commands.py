"""doctor, bench, plan and verify on GPUs."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from longtake import VideoEngine, VideoRequest
from longtake.cli import main as cli
from longtake.configs.hardware import load_hardware
from longtake.configs.snapshot import SnapshotConfig
from longtake.engine.media.snapshot import plan_snapshots
from longtake.engine.planning.hardware import hardware_here
from longtake.engine.video import FramesInMemory

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")


def test_doctor_finds_no_failure(capsys: pytest.CaptureFixture[str]) -> None:
    code = cli.main(["doctor", "--json", "--devices", str(torch.cuda.device_count())])
    findings = json.loads(capsys.readouterr().out)["findings"]
    assert code in (0, 1), [each for each in findings if each["status"] == "failure"]


def test_hardware_has_its_memory_and_devices() -> None:
    found = hardware_here()
    assert found.device == "cuda"
    assert found.devices_per_node == torch.cuda.device_count()
    total = torch.cuda.get_device_properties(0).total_memory
    assert found.memory_bytes is not None
    assert found.memory_bytes.value == pytest.approx(total, rel=0.05)


def test_measured_profile_is_near_the_datasheet(tmp_path: Path) -> None:
    path, count = tmp_path / "here.yaml", str(torch.cuda.device_count())
    assert cli.main(["bench", "--calibrate", "--devices", count, "-o", str(path)]) == 0
    measured, known = load_hardware(str(path)), hardware_here()
    reached = measured.flops_per_s["bfloat16"].value * measured.linear_share.value
    assert 0.3 < reached / known.flops_per_s["bfloat16"].value < 1.1
    assert 0.4 < measured.memory_bytes_per_s.value / known.memory_bytes_per_s.value < 1.1
    assert cli.main(["plan", "--gpu", str(path), "--devices", count, "--quiet"]) == 0


@pytest.mark.parametrize("model", ["demo", "demo-i2v"])
def test_all_layouts_render_the_same_video(model: str) -> None:
    count = str(torch.cuda.device_count())
    arguments = ["verify", "--model", model, "--devices", count, "--dtype", "float32"]
    assert cli.main([*arguments, "--tolerance", "1e-3"]) == 0


def test_rendering_resumes_and_decodes_in_low_memory(tmp_path: Path) -> None:
    """The second run decodes with the denoiser in host memory."""
    request = VideoRequest(prompt="a red circle moving right", seed=1)
    with VideoEngine.from_pretrained("demo", dtype="float32") as engine:
        resolved, path = engine.resolve(request), tmp_path / "x.safetensors"
        often = SnapshotConfig(snapshot_steps=5)
        frames = []
        for resume in (False, True):  # a resumed run only decodes
            sink = FramesInMemory(engine.num_frames_of(resolved))
            plan, _ = plan_snapshots(path, engine.identity_of(resolved), often, resume=resume)
            assert plan.steps_done == (resolved.num_inference_steps if resume else 0)
            engine.render(resolved, sink, snapshots=plan, low_memory=resume)
            frames.append(sink.batch[0])
        assert abs(frames[0] - frames[1]).max() < 1e-3
        assert (
            engine.generate(request).frames.shape == frames[0].shape
        )  # the denoiser is on the GPU again
