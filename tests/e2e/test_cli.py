"""longtake generate: outputs, refusals, signals."""

from __future__ import annotations

import json
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
from safetensors.numpy import load_file

from longtake.cli import main as cli
from longtake.files import atomic as files
from tests import tiny
from tests.forked_commands import ForkedCommand, ranks_of, run_command
from tests.processes import still_running

COMMAND = [sys.executable, "-m", "longtake"]


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize("suffix", [".mp4", ".webm", ".gif", ".npy", ".safetensors", ""])
def test_writes_the_video_and_its_metadata(generate: Any, tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"out{suffix}"
    code, out, _ = generate("a cat walks", "-o", str(path), "--num-frames", "5")
    assert code == 0
    assert names(tmp_path) == sorted({path.name, f"{path.name}.json"})
    assert out.startswith(f"{path}: 5 frames of 48x32, seed ")
    if suffix == "":
        assert names(path) == [f"{index:05d}.png" for index in range(5)]
    if suffix == ".npy":
        assert np.load(path).shape == (5, 32, 48, 3)
    if suffix == ".safetensors":
        assert load_file(path)["latents"].shape == (4, 2, 4, 6)


def test_drawn_seed_renders_the_same_file_again(generate: Any, tmp_path: Path) -> None:
    first, by_seed, by_file = (tmp_path / f"{name}.mp4" for name in ("a", "b", "c"))
    assert generate("a cat", "-o", str(first))[0] == 0
    seed = json.loads((tmp_path / "a.mp4.json").read_text())["request"]["seed"]
    assert generate("a cat", "-o", str(by_seed), "--seed", str(seed))[0] == 0
    assert generate("--config", str(tmp_path / "a.mp4.json"), "-o", str(by_file))[0] == 0
    assert first.read_bytes() == by_seed.read_bytes() == by_file.read_bytes()


def test_flags_override_the_config_file(generate: Any, tmp_path: Path) -> None:
    config = tmp_path / "options.yaml"
    out = tmp_path / "out.npy"
    config.write_text(
        "prompt: a dog\nheight: 64\nnum-frames: 1\ntrue_cfg_scale: 2\nsigmas: [1.0, 0.5]\n"
        f"output: {out}\nnegative_prompt: red\n"
    )
    code, _, _ = generate("a cat", "--config", str(config), "--height", "48", "--no-metadata")
    assert code == 0
    assert np.load(out).shape == (1, 48, 48, 3)
    assert names(tmp_path) == ["options.yaml", "out.npy"]


def test_flags_override_switches_and_degrees_of_the_file(generate: Any, tmp_path: Path) -> None:
    config, path = tmp_path / "options.yaml", tmp_path / "out.npy"
    config.write_text("shard_weights: true\nnum_frames: 1\n")  # as 0.1.0 called it
    for switch, devices in (((), 2), (("--weights", "resident"), 1)):
        over = ("-o", str(path), "--overwrite")
        count = ("--devices", str(devices))
        code, _, err = generate("a", "--config", str(config), *over, *switch, *count)
        assert code == 0
        assert (" +split, the best of 2: split weights and resident " in err) == (devices == 2)
        metadata = json.loads((tmp_path / "out.npy.json").read_text())
        assert metadata["engine"]["weights"] == ("split" if devices > 1 else "resident")
    metadata["engine"]["devices"] = metadata["engine"]["parallel"]["ulysses_degree"] = 3
    (tmp_path / "of-three-ranks.json").write_text(json.dumps(metadata))
    again = ("--config", str(tmp_path / "of-three-ranks.json"), *over)
    assert generate(*again, "--devices", "1")[0] == 0
    for steps in (("--sigmas", "1.0", "0.6"), ("--num-inference-steps", "1")):
        assert generate(*again, "--devices", "1", *steps)[0] == 0


def test_folder_in_the_place_of_the_metadata_is_refused(generate: Any, tmp_path: Path) -> None:
    (tmp_path / "out.npy.json").mkdir()
    code, _, err = generate("a cat", "-o", str(tmp_path / "out.npy"))
    assert (code, names(tmp_path)) == (2, ["out.npy.json"])
    assert "out.npy.json is a folder: move it, or pass --no-metadata" in err
    assert generate("a cat", "-o", str(tmp_path / "out.npy"), "--no-metadata")[0] == 0


def test_json_and_quiet(generate: Any, tmp_path: Path) -> None:
    path = str(tmp_path / "out.npy")
    code, out, err = generate("a cat", "-o", path, "--json", "--num-inference-steps", "4")
    events = [json.loads(line) for line in out.splitlines()]
    assert (code, err) == (0, "")
    steps = [each["done"] for each in events if each.get("phase") == "denoising"]
    assert steps == [0, 1, 2, 3, 4]
    assert events[-1]["event"] == "done"
    assert events[-1]["output"] == [path]
    assert events[-1]["metadata"]["seconds"]["writing"] >= 0
    assert generate("a cat", "-o", path, "--quiet", "--overwrite") == (0, "", "")
    code, out, err = generate("a cat", "-o", path, "--json", "--height", "1")
    assert json.loads(out)["exit_code"] == code == 2


@pytest.mark.parametrize("devices", ["1", "2"])
def test_truncated_prompt_is_the_only_warning(model: str, tmp_path: Path, devices: str) -> None:
    newer = {"what_a_newer_version_saved": 1, "torch_dtype": "float32"}
    other = tiny.changed(Path(model), tmp_path / "other", "transformer/config.json", newer)
    prompt = "a cat walks on the green grass and " * 20  # longer than CLIP's limit, too
    command = [*COMMAND, "generate", prompt, "--model", str(other), "--devices", devices]
    ran = subprocess.run(
        [*command, "--quiet", "-o", "out.npy"], cwd=tmp_path, capture_output=True, text=True
    )
    assert (ran.returncode, ran.stdout) == (0, "")
    used = tiny.MAX_TOKENS - 1  # without the end token
    assert ran.stderr == (
        f"longtake: prompt has 160 tokens, of which the first {used} are used: shorten it, or "
        "raise max_sequence_length\n"
    )
    (metadata,) = tmp_path.glob("*.json")
    assert json.loads(metadata.read_text())["truncated"] == {"prompt": {"used": used, "total": 160}}


REFUSED: dict[str, tuple[list[str], str]] = {
    "a word for a number": (["a", "--height", "tall"], "height='tall' must be a whole number"),
    "no multiple": (["a", "--height", "40"], "height=40 must be a multiple of 16: try 32 or 48"),
    "frames": (["a", "--num-frames", "4"], "num_frames=4 must be 1 more than a multiple of 4"),
    "no steps": (["a", "--num-inference-steps", "0"], "num_inference_steps='0' must be at least"),
    "negative seed": (["a", "--seed", "-1"], "seed='-1' must be at least 0"),
    "no number": (["a", "--guidance-scale", "nan"], "guidance_scale='nan' must be a finite"),
    "no prompt": ([], "prompt is missing"),
    "blank prompt": (["  "], "prompt='  ' must not be blank"),
    "no model": (["a", "--model", "/no/where"], "there is no folder /no/where"),
    "no devices": (["a", "--devices", "0"], "devices='0' must be at least 1"),
    "degrees": (
        ["a", "--devices", "4", "--ulysses-degree", "3", "--ring-degree", "2"],
        "ring_degree=2 x ulysses_degree=3 needs 6 ranks, got devices=4: try devices=6, or "
        "ring_degree=1 x ulysses_degree=4",
    ),
    "one branch": (
        ["a", "--devices", "2", "--cfg-degree", "2"],
        "cfg_degree=2: without classifier-free guidance",
    ),
    "three branches": (["a", "--cfg-degree", "3"], "cfg_degree='3' must be at most"),
    "no such kernel": (["a", "--attention-kernel", "magic"], "attention_kernel='magic' is unknown"),
    "no such dtype": (["a", "--dtype", "int8"], "dtype='int8' must be auto, float32"),
    "no GPU": (["a", "--device", "cuda"], "devices=1 with 0 GPUs here"),
    "no folder": (["a", "-o", "/no/where/out.mp4"], "there is no folder /no/where"),
    "no such suffix": (["a", "-o", "out.avi"], "has the suffix '.avi': use .mp4"),
    "too long a name": (["a", "-o", "x" * 300 + ".mp4"], "cannot be a file: File name too long"),
    "too long a model": (["a", "--model", "x" * 300], "there is no folder xxx"),
    "no such home": (["a", "--model", "~nobody-here/model"], "there is no folder ~nobody-here"),
    "no config": (["a", "--config", "/no/file"], "config='/no/file' cannot be read: No such file"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_invalid_input_is_one_line_and_exit_code_2(
    model: str, tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    arguments, text = REFUSED[name]
    monkeypatch.chdir(tmp_path)
    if "--model" not in arguments:
        arguments = [*arguments, "--model", model]
    assert cli.main(["generate", *arguments]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert text in err
    assert len(err.splitlines()) == 1
    assert names(tmp_path) == []


@pytest.mark.parametrize(
    ("content", "text"),
    [
        ("a: [", "is not YAML"),
        ("- 1", "must map options to values"),
        ("colour: blue", "line 1: colour is not an option"),
        ("height: {}", "height={} must be a whole number"),
        ("prompt: [7]", "line 1: prompt=['7'] must be text"),
        ("prompt: a\nseed: 2024-13-45", "line 2: seed='2024-13-45' must be a whole number"),
        ("prompt: " + "[" * 5000, "line 1: is nested deeper than 20"),
        ("\nheight: 64\nheight: 32", "line 3: has height twice"),
        ("prompt: a\n\nheigth: 64", "line 3: heigth is not an option: perhaps you meant height"),
        ("prompt: a\nheight: 40", "line 2: height=40 must be a multiple of 16"),
        ("prompt: caf\udce9", "line 1: is not UTF-8"),
        ("prompt: a\nseed: yes", "line 2: seed='yes' must be a whole number"),
        ("output: [5]", "must be a path"),
        ("output_type: latents", "line 1: output_type is not an option"),
        ("engine: {parallel: 3}\nrequest: {}", "prompt is missing"),
        ("prompt: a\nprompt_template: {template: x, crop_start: 0}", "must contain {} once"),
    ],
)
def test_invalid_config_files(generate: Any, tmp_path: Path, content: str, text: str) -> None:
    config = tmp_path / "options.yaml"
    config.write_bytes(content.encode("utf-8", "surrogateescape"))
    code, out, err = generate("--config", str(config))
    assert (code, out, len(err.splitlines())) == (2, "", 1)
    assert text in err


def test_unknown_option_suggests_a_known_one(generate: Any, capsys: Any) -> None:
    with pytest.raises(SystemExit) as caught:
        generate("a cat", "--heigth", "32")
    assert caught.value.code == 2
    assert capsys.readouterr().err == (
        "longtake: --heigth is not an option of generate: perhaps you meant --height; "
        "see longtake generate --help\n"
    )


def test_prompt_may_begin_with_a_dash(model: str, tmp_path: Path) -> None:
    options = ["--model", model, "-o", str(tmp_path / "out.npy"), "--num-frames", "1"]
    assert cli.main(["generate", *options, "--", "-a cat"]) == 0
    assert json.loads((tmp_path / "out.npy.json").read_text())["request"]["prompt"] == "-a cat"


def test_damaged_model_is_refused_by_two_ranks(model: str, tmp_path: Path) -> None:
    """The damage is found while the ranks load: one line and exit code 2, as before loading."""
    copy = shutil.copytree(model, tmp_path / "model")
    config = json.loads((copy / "transformer/config.json").read_text())
    (copy / "transformer/config.json").write_text(json.dumps({**config, "num_layers": 3}))
    out = tmp_path / "out"
    out.mkdir()
    ran = run(["a", "--model", str(copy), "--devices", "2", "-o", str(out / "out.mp4")])
    assert ran.returncode == 2
    assert ran.stderr.splitlines()[-1].startswith(f"longtake: {copy}/transformer lacks ")
    assert names(out) == []


def test_ranks_end_with_a_parent_that_dies_while_they_start(model: str) -> None:
    command = [*COMMAND, "generate", "a", "--model", model, "--devices", "2", "--quiet"]
    with subprocess.Popen(command, start_new_session=True) as process:
        ranks: list[psutil.Process] = []
        while len(ranks) < 2:
            ranks = psutil.Process(process.pid).children()
            time.sleep(0.02)
        process.kill()
    assert not still_running(ranks, timeout=25)


@pytest.mark.parametrize("suffix", [".mp4", ".gif", ".npy", ".safetensors", ""])
def test_a_disk_that_fills_up(
    generate: Any, tmp_path: Path, suffix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Simulated by a limit on file size, which the video or its metadata exceeds."""
    monkeypatch.setattr(files, "_PROBE_BYTES", 1)  # the check at the start passes
    size = ["--height", "64", "--width", "64", "--num-inference-steps", "1"]
    unlimited = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1024, unlimited[1]))
    try:
        code, _, err = generate("a", "-o", str(tmp_path / f"out{suffix}"), *size, "--quiet")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, unlimited)
    assert code == 3
    assert re.fullmatch(r"longtake: \S*/out\S* cannot be written: File too large\n", err)
    assert names(tmp_path) == []


def test_closed_output_streams_do_not_stop_a_rendering(model: str, tmp_path: Path) -> None:
    """Stdout is a closed pipe; stdout and stderr are on a full disk."""
    for at, (view, where) in enumerate((("--json", "| head -1"), ("--metadata", "&> /dev/full"))):
        path = tmp_path / f"{at}.npy"
        words = [*COMMAND, "generate", "a", "--model", model, "-o", str(path), view]
        ran = subprocess.run(
            ["bash", "-c", f'set -o pipefail; "$@" {where}', "_", *words],
            capture_output=True,
            text=True,
            check=False,
        )
        assert ran.returncode == 0, ran.stderr
        assert "Traceback" not in ran.stderr
        assert path.is_file()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGKILL])
def test_signal_stops_denoising(model: str, tmp_path: Path, number: signal.Signals) -> None:
    arguments = ["a", "--model", model, "--devices", "2", "-o", str(tmp_path / "out.mp4")]
    words = ["generate", *arguments, "--num-inference-steps", "10000", "--json"]
    with ForkedCommand(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if json.loads(line).get("done") == 3:
                break
        ranks = ranks_of(process.pid)
        assert len(ranks) == 2
        for _ in range(30):  # repeated by the user or a service manager
            process.send_signal(number)
            time.sleep(0.005)
        _, err = process.communicate(timeout=20)
    assert not still_running(ranks, timeout=5)
    saves = number is not signal.SIGINT  # other signals leave a snapshot
    if number is not signal.SIGKILL:
        assert names(tmp_path) == (["out.snapshot.safetensors"] if saves else [])
        assert process.returncode == 130
        left = str(tmp_path / "out.snapshot.safetensors") if saves else "nothing"
        assert err.splitlines() == [f"longtake: stopped; {left} was written"]
    else:
        assert set(names(tmp_path)) <= {"out.snapshot.safetensors"}


def run(arguments: list[str], **environment: str) -> subprocess.CompletedProcess[str]:
    """Run the command in a process of its own."""
    start = time.monotonic()
    ran = run_command(["generate", *arguments], env={**os.environ, **environment})
    assert time.monotonic() - start < 100
    return ran
