"""longtake plan: tables, JSON, refusals."""

from __future__ import annotations

import json
import resource
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from longtake.cli import main as cli
from longtake.configs.hardware import profiles
from longtake.configs.models import presets
from tests.plans import planned, refused

RELEASED = ["--model", "hunyuan-video", "--gpu", "h100", "--devices", "8"]
SIZE = ["--height", "720", "--width", "1280", "--num-frames", "129"]


def test_json(capsys: pytest.CaptureFixture[str]) -> None:
    plan = planned(capsys, *RELEASED, *SIZE)
    best = plan["best"]
    assert best == plan["layouts"][0]
    assert best["layout"] == {
        "cfg_degree": 1,
        "ring_degree": 1,
        "ulysses_degree": 8,
        "weights": "resident",
        "text_weights": "streamed",
    }
    assert best["end_to_end_s"] == pytest.approx(sum(best["stages_s"].values()))
    assert best["stages_s"]["denoise"] == pytest.approx(50 * best["seconds_per_step"])
    parts = best["memory_bytes"]
    assert best["memory_bytes_per_rank"] <= sum(parts.values())
    assert best["memory_bytes_per_rank"] > parts["weights"] > 2 * 12.8e9
    assert best["bytes_per_step"] == sum(best["bytes_per_step_by_rank"])
    assert 0.9 < best["efficiency"] <= 1
    assert len(plan["layouts"]) == 16  # four, with weights in four places
    assert {each["layout"] for each in plan["refused"]} == {"2x1x4", "2x2x2", "2x4x1"}


def test_tables(capsys: pytest.CaptureFixture[str]) -> None:
    capsys.readouterr()
    assert cli.main(["plan", *RELEASED, *SIZE]) == 0
    out = capsys.readouterr().out
    assert "best: 1x1x8 (cfg x ring x ulysses), " in out
    rows = [line.split()[0] for line in out.splitlines() if line.strip().startswith("1x")]
    assert rows[0] == "1x1x8" and len(rows) == 16 + 16 + 7  # times, memory, all ways
    assert "there is no second pass" in out


def test_plans_within_three_seconds_without_torch() -> None:
    script = (
        "import sys; from longtake.cli import main as cli\n"
        f"code = cli.main(['plan', '--json', *{RELEASED + SIZE}])\n"
        "heavy = {'torch', 'diffusers', 'transformers', 'av', 'imageio', 'huggingface_hub'}\n"
        "sys.exit(code or ', '.join(heavy & sys.modules.keys()) or 0)"
    )
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert done.returncode == 0, done.stderr
    assert (after.ru_utime + after.ru_stime) - (before.ru_utime + before.ru_stime) < 3


def test_folder_and_hub_id_of_a_preset(capsys: pytest.CaptureFixture[str], model: str) -> None:
    tiny = planned(capsys, "--model", model, "--gpu", "cpu", "--devices", "5")
    assert tiny["request"]["height"] == 32
    assert {each["layout"]["ulysses_degree"] for each in tiny["layouts"]} == {1, 5}
    by_id = planned(capsys, "--model", "hunyuanvideo-community/HunyuanVideo", *RELEASED[2:])
    assert by_id == planned(capsys, *RELEASED)


def test_only_the_configuration_of_a_hub_id_is_read(
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    model: str,
    tmp_path: Path,
) -> None:
    folder = tmp_path / "commit"
    shutil.copytree(model, folder, ignore=shutil.ignore_patterns("*.safetensors", "tokenizer*"))
    patterns: list[list[str]] = []

    def download(repository: str, *, revision: str | None, allow_patterns: list[str]) -> str:
        assert repository == "someone/else"
        patterns.append(allow_patterns)
        return str(folder)

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    plan = planned(capsys, "--model", "someone/else", "--gpu", "a800", "--devices", "2")
    assert plan["best"]["seconds_per_step"] > 0
    assert not any("safetensors" in pattern for pattern in patterns[0])


def test_degrees_and_sharded_weights_narrow_the_choice(capsys: pytest.CaptureFixture[str]) -> None:
    plan = planned(capsys, *RELEASED, "--ring-degree", "2", "--weights", "split")
    (only,) = plan["layouts"]
    assert only["layout"]["ring_degree"] == 2 and only["layout"]["weights"] == "split"


def test_smaller_nodes_are_slower(capsys: pytest.CaptureFixture[str]) -> None:
    nodes = planned(capsys, *RELEASED[:4], "--devices", "8", "--gpus-per-node", "4")
    assert nodes["best"]["layout"]["ulysses_degree"] <= 4
    whole = planned(capsys, *RELEASED)
    assert nodes["best"]["seconds_per_step"] > whole["best"]["seconds_per_step"]


def test_profile_in_a_file(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    from longtake.configs import hardware

    own = tmp_path / "mine.yaml"
    shutil.copy(Path(hardware.__file__).parent / "l20.yaml", own)
    plan = planned(capsys, "--model", "hunyuan-video", "--gpu", str(own), "--devices", "2")
    assert "L20" in plan["hardware"]


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["--gpu", "h1000"], f"gpu='h1000' is unknown: use {', '.join(profiles())}, here, or"),
        (["--gpu", "none.yaml"], "gpu='none.yaml' cannot be read: No such file or directory"),
        (["--devices", "0"], "devices='0' must be at least 1"),
        (["--devices", "-4"], "devices='-4' must be at least 1"),
        (["--devices", "1025"], "devices=1025: plans are made for 1024 at most"),
        (["--height", "0"], "height='0' must be at least 1"),
        (["--height", "721"], "height=721 must be a multiple of 16: try 720 or 736"),
        (["--num-frames", "128"], "num_frames=128 must be 1 more than a multiple of 4"),
        (["--gpus-per-node", "0"], "gpus_per_node='0' must be at least 1"),
        (["--text-tokens", "-1"], "text_tokens='-1' must be at least 1"),
        (["--decode-ranks", "0"], "decode_ranks='0' must be at least 1"),
        (["--ulysses-degree", "3"], "ulysses_degree=3 needs a multiple of 3 ranks"),
        (["--cfg-degree", "2"], "cfg_degree=2: without classifier-free guidance"),
        (["--model", "nothing"], "there is no folder nothing: pass a model's folder"),
        (["--seed", "1"], "--seed is not an option of plan, but of generate, batch, verify;"),
    ],
)
def test_refusals(capsys: pytest.CaptureFixture[str], arguments: list[str], text: str) -> None:
    line = refused(capsys, *RELEASED, *arguments)
    assert line.startswith("longtake: ") and text in line


def test_model_that_does_not_fit(capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--model", "hunyuan-video", "--gpu", "rtx4090", "--weights", "resident"]
    line = refused(capsys, *arguments)
    assert "needs 30.6 GiB a rank and there are 23.3" in line and "try --weights streamed" in line
    capsys.readouterr()
    assert cli.main(["plan", "--json", *arguments]) == 2
    plan = json.loads(capsys.readouterr().out)
    assert plan["best"] is None and plan["layouts"] == []
    assert plan["error"] in line
    assert "too much" in plan["refused"][0]["reason"]


def test_the_ladder_says_what_runs_and_what_it_loses(capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--model", "hunyuan-video", "--gpu", "rtx4080"]
    plan = planned(capsys, *arguments)
    best, *others = plan["ladder"]
    assert best["name"] == plan["best"]["name"] == "1x1x1 +streamed"
    assert best["loss"] == "exact" and best["fits"] and best["reason"] is None
    assert best["memory_bytes_per_rank"] < 16e9 < best["host_memory_bytes"]
    whole = next(each for each in others if each["name"] == "1x1x1")
    assert not whole["fits"] and "GiB a rank and there are 15.7" in whole["reason"]
    assert {each["storage_dtype"] for each in others} == {None, "float8", "int8", "nf4"}
    capsys.readouterr()
    assert cli.main(["plan", *arguments]) == 0
    out = capsys.readouterr().out
    assert "1x1x1 +streamed float8" in out and "weights rounded to 8 bits" in out


def test_sizes_and_lengths_that_fit(capsys: pytest.CaptureFixture[str]) -> None:
    found = planned(capsys, "--what-fits", "--gpu", "rtx4080", "--model", "hunyuan-video")
    first, *smaller = found["fits"]
    assert (first["width"], first["height"], first["num_frames"]) == (1280, 720, 129)
    assert first["fits"] and first["weights"] == "streamed"
    lengths = [each["longest_num_frames"] for each in found["fits"]]
    assert lengths == sorted(lengths) and lengths[0] >= 129 and len(smaller) == 3
    assert cli.main(["plan", "--what-fits", "--gpu", "h100", "--devices", "2"]) == 0
    out = capsys.readouterr().out
    assert all(name in out for name in presets())
    line = refused(capsys, "--what-fits", "--gpu", "h100", "--resolution", "480p")
    assert "resolution=480p with --what-fits, which lists sizes and lengths" in line
