"""longtake plan --train: tables, JSON, refusals."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

import pytest

from longtake.cli import main as cli
from tests.plans import planned, refused

RUN = ["--train", "--model", "llama3-8b", "--gpu", "a800", "--devices", "16"]
RUN += ["--sequence-length", "65536"]
EVERY_OTHER = ["--ulysses-degree", "2", "--data-degree", "1", "--pipeline-degree", "1"]
EVERY_OTHER += ["--tensor-degree", "1"]
FIXED = ["--ring-degree", "4", "--ulysses-degree", "4", "--zero-stage", "1"]


def test_json_of_one_layout(capsys: pytest.CaptureFixture[str]) -> None:
    plan = planned(capsys, *RUN, *FIXED)
    assert plan["best"] == plan["layouts"][0]
    assert len(plan["layouts"]) == 1 and plan["refused"] == []
    best = plan["best"]
    assert best["name"] == "ring4 ulysses4 zero1"
    assert best["layout"]["tensor"] == 1 and best["layout"]["zero"] == 1
    assert best["recompute"] == "selective"
    assert best["mfu"] == pytest.approx(0.44, rel=0.08)  # as the USP paper's run
    parts = dict(best["step_s"])
    hidden = parts.pop("hidden")
    assert best["seconds_per_step"] == pytest.approx(sum(parts.values()))
    assert hidden > 0
    assert best["tokens_per_s"] == pytest.approx(65536 / best["seconds_per_step"])
    assert best["memory_bytes_per_rank"] <= sum(best["memory_bytes"].values()) < 85e9


def test_the_table_has_the_best_and_the_closest_refused(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert cli.main(["plan", *RUN, "--top", "3"]) == 0
    lines = capsys.readouterr().out.splitlines()
    plan = planned(capsys, *RUN)
    names = [each["name"] for each in plan["layouts"]]
    assert lines[0].startswith("8.03 B parameters, 1 x 65536 tokens a step, bfloat16, on 16 x")
    assert lines[1].startswith(f"best: {names[0]}, MFU {100 * plan['best']['mfu']:.1f} %")
    header = next(at for at, line in enumerate(lines) if line.startswith("layout"))
    for line, name in zip(lines[header + 1 :], names[:3], strict=False):
        assert line.startswith(f"{name} ")
    assert f"and {len(names) - 3} slower ones: --top, or --json" in lines
    assert f"and {len(plan['refused']) - 3} more: --top, or --json" in lines
    assert "GiB a rank and there are" in lines[-2]
    assert cli.main(["plan", *RUN, "--quiet"]) == 0
    assert capsys.readouterr().out == ""


def test_the_page_has_what_its_command_prints(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "200")  # a terminal that wraps nothing
    page = (Path(__file__).parents[2] / "docs/explanation/training.md").read_text()
    command, printed = re.findall(r"^```\w*\n(.*?)^```$", page, re.M | re.S)[:2]
    assert cli.main(shlex.split(command)[1:]) == 0
    assert capsys.readouterr().out == printed


def test_fixed_degrees_and_a_file(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    shape = {"hidden_size": 512, "intermediate_size": 1376, "num_hidden_layers": 4}
    shape |= {"num_attention_heads": 8, "num_key_value_heads": 2, "vocab_size": 1000}
    (tmp_path / "config.json").write_text(json.dumps(shape))
    options = ["--train", "--model", str(tmp_path), "--gpu", "h100", "--devices", "8"]
    degrees = ["--data-degree", "2", "--pipeline-degree", "2", "--tensor-degree", "2"]
    more = ["--batch-size", "4", "--recompute", "full", "--tensor-sequence", "true"]
    plan = planned(capsys, *options, *degrees, *more, "--gpus-per-node", "4")
    assert {each["name"] for each in plan["layouts"]} == {
        f"pp2 dp2 tp2-sp zero{stage}" for stage in range(4)
    }
    assert {each["recompute"] for each in plan["layouts"]} == {"full"}
    assert plan["devices_per_node"] == 4
    assert plan["request"]["batch_size"] == 4


def test_a_sequence_that_never_fits(capsys: pytest.CaptureFixture[str]) -> None:
    arguments = [*RUN, "--sequence-length", "16777216"]
    message = refused(capsys, *arguments)
    assert "no layout of devices=16 can train sequence_length=16777216" in message
    assert cli.main(["plan", "--json", *arguments]) == 2
    described = json.loads(capsys.readouterr().out)
    assert described["exit_code"] == 2 and described["best"] is None
    assert described["error"] in message


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--train"], "--train plans a decoder: add --model with llama2-7b"),
        ([*RUN, "--num-frames", "5"], "num_frames=5 is of a video"),
        ([*RUN, "--cfg-degree", "2"], "cfg_degree=2 is of a video"),
        ([*RUN, "--weights", "split"], "weights=split is of a video"),
        (["--sequence-length", "8"], "sequence_length=8 is of a training plan: add --train"),
        ([*RUN, "--sequence-length", "0"], "sequence_length='0' must be at least 1"),
        ([*RUN, "--zero-stage", "4"], "zero_stage='4' must be at most 3"),
        ([*RUN, "--recompute", "some"], "recompute='some'"),
        (
            [*RUN, "--tensor-degree", "3"],
            "no layout of devices=16 has tensor_degree=3: change or leave out the degree, or plan "
            "devices=3",
        ),
        (
            [*RUN, "--ring-degree", "4", "--tensor-degree", "8"],
            "has ring_degree=4 x tensor_degree=8 = 32: change or leave out one of them, or plan "
            "devices=32",
        ),
        (
            [*RUN, *FIXED[:2], *EVERY_OTHER],
            "has pipeline_degree=1 x data_degree=1 x ring_degree=4 x ulysses_degree=2 x "
            "tensor_degree=1 = 8:",
        ),
        ([*RUN, "--devices", "100000"], "devices='100000' must be at most 65536"),
        ([*RUN, "--devices", "1024"], "devices=1024: plans are made for 512 at most"),
        ([*RUN, "--model", "hunyuan-video"], "model='hunyuan-video' is no decoder"),
        ([*RUN, "--gpu", "a900"], "gpu='a900' is unknown"),
    ],
)
def test_refusals(capsys: pytest.CaptureFixture[str], arguments: list[str], message: str) -> None:
    assert message in refused(capsys, *arguments)
