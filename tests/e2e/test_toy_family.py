"""A model family of another package: installed, it renders by every door, as longtake's own do."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import imageio.v3 as iio
import numpy as np
import numpy.typing as npt
import pytest
from safetensors.numpy import load_file

from tests import tiny_toy
from tests.console import Console, environment
from tests.serving import serving

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "tests" / "families" / "toy"
LONGTAKE = [sys.executable, "-m", "longtake"]
Frames = npt.NDArray[np.float32]
SHOT = ("a red circle", "--seed", 1)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which the toy's package is installed."""
    folder = tmp_path_factory.mktemp("toy")
    source = shutil.copytree(PACKAGE, folder / "source")  # setuptools builds in the source folder
    install = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index"]
    install += ["--no-build-isolation", "--disable-pip-version-check"]
    subprocess.run([*install, "--target", folder / "site", source], check=True)
    return folder / "site"


@pytest.fixture(scope="module")
def toy(site: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The folder of a tiny toy model."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(site)
        yield tiny_toy.save(tmp_path_factory.mktemp("models") / "toy")
    for name in [name for name in sys.modules if name.startswith("longtake_toy")]:
        del sys.modules[name]


@pytest.fixture(scope="module")
def console(site: Path) -> Iterator[Console]:
    """A process in which the toy is installed."""
    with Console(site) as running:
        yield running


@pytest.fixture(scope="module")
def frames(console: Console, toy: Path, tmp_path_factory: pytest.TempPathFactory) -> Frames:
    """The frames of the shot on one rank."""
    return render(console, tmp_path_factory.mktemp("frames"), "--model", toy)


def render(console: Console, folder: Path, *options: object) -> Frames:
    """The frames of the shot."""
    out = folder / "out.npy"
    code, _, err = console.run("generate", *SHOT, "-o", out, "--overwrite", *options)
    assert code == 0, err
    array: Frames = np.load(out)
    return array


def test_the_package_is_small() -> None:
    files = {file.name: file.read_text().splitlines() for file in PACKAGE.rglob("*.py")}
    num_lines = {name: len(list(filter(str.strip, lines))) for name, lines in files.items()}
    assert 0 < num_lines.pop("layouts.py") <= 90  # only for files in other layouts
    assert 0 < sum(num_lines.values()) <= 250


def test_longtake_does_not_know_it() -> None:
    files = subprocess.run(
        ["git", "ls-files", "*.py", "*.pyi", "*.yaml", "*.html", "*.js"],
        cwd=ROOT,
        check=True,
        capture_output=True,
        text=True,
    ).stdout.split()
    known = ("configs/", "parallel/", "pipelines/", "engine/", "serve/", "longtake/")
    own = [ROOT / name for name in files if name.startswith(known)]
    assert len(own) > 200
    named = [file for file in own if file.is_file() and "toy" in file.read_text().lower()]
    assert named == []


@pytest.mark.parametrize(
    "layout",
    ["3", "2 --cfg-degree 2", "2 --cfg-degree 1 --ring-degree 2 --weights split"],
)
def test_every_layout_renders_the_same(
    console: Console, toy: Path, frames: Frames, tmp_path: Path, layout: str
) -> None:
    found = render(console, tmp_path, "--model", toy, "--devices", *layout.split())
    np.testing.assert_allclose(found, frames, rtol=0, atol=1e-4)


def test_it_is_stored_in_fewer_bits(
    console: Console, toy: Path, frames: Frames, tmp_path: Path
) -> None:
    stored = ("--model", toy, "--storage-dtype", "int8")
    alone = render(console, tmp_path, *stored)
    assert 1e-4 < abs(alone - frames).max() < 0.1
    split = ("--devices", 2, "--cfg-degree", 1, "--weights", "split")
    found = render(console, tmp_path, *stored, *split)
    np.testing.assert_allclose(found, alone, rtol=0, atol=1e-4)


def test_a_rank_without_tokens(console: Console, toy: Path, tmp_path: Path) -> None:
    tiny = ("--model", toy, "--num-frames", 1, "--height", 8, "--width", 16)
    expected = render(console, tmp_path, *tiny)
    found = render(console, tmp_path, *tiny, "--devices", 3, "--cfg-degree", 1)
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-4)


def test_its_option_is_a_flag_and_changes_the_video(
    console: Console, toy: Path, frames: Frames, tmp_path: Path
) -> None:
    changed = render(console, tmp_path, "--model", toy, "--guidance-rescale", 0)
    assert abs(changed - frames).max() > 1e-3
    metadata = json.loads((tmp_path / "out.npy.json").read_text())["request"]
    assert (metadata["guidance_rescale"], metadata["negative_prompt"]) == (0, "noise")
    unguided = render(console, tmp_path, "--model", toy, "--guidance-scale", 1)
    assert abs(unguided - changed).max() > 1e-3
    code, out, _ = console.run("generate", "--help")
    assert code == 0
    assert "--guidance-rescale NUMBER" in out
    assert "toy only" in " ".join(out.replace("│", " ").split())


@pytest.mark.parametrize(
    ("words", "refusal"),
    [
        (("--model", "demo", "--guidance-rescale", 0.5), "not an option of demo (HunyuanVideo)"),
        (("--true-cfg-scale", 2), "true_cfg_scale=2.0 is not an option of {toy} (toy)"),
        (("--guidance-rescale", 2), "guidance_rescale='2' must be at most 1"),
        (("--num-frames", 4), "num_frames=4 must be 1 more than a multiple of 2: try 3 or 5"),
        (("--image", "a.png"), "with a model that takes no picture"),
    ],
)
def test_refusals(console: Console, toy: Path, words: tuple[object, ...], refusal: str) -> None:
    code, out, err = console.run("generate", *SHOT, "--model", toy, *words)
    assert (code, out) == (2, "")
    (line,) = err.splitlines()
    assert refusal.format(toy=toy) in line


def test_a_snapshot_holds_the_samplers_memory(
    console: Console, toy: Path, site: Path, tmp_path: Path
) -> None:
    """Killed on two ranks, resumed bit for bit on two, and within 1e-4 on one."""
    out, snapshot = tmp_path / "out.npy", tmp_path / "out.snapshot.safetensors"
    shot = [*SHOT, "--model", toy, "-o", out, "--num-inference-steps", 120, "--cfg-degree", 1]
    words = [*shot, "--devices", 2, "--snapshot-steps", 7, "--json"]
    with subprocess.Popen(
        [*LONGTAKE, "generate", *map(str, words)],
        stdout=subprocess.PIPE,
        text=True,
        env=environment(site),
    ) as process:
        assert process.stdout is not None
        for line in process.stdout:
            event = json.loads(line)
            if event.get("phase") == "denoising" and event["done"] >= 8:
                os.kill(process.pid, signal.SIGKILL)
                break
    assert "tokens.velocity" in load_file(snapshot)
    saved = snapshot.read_bytes()
    assert rb"\"longtake-toy\":\"1.0\"" in saved
    results = []
    for devices, resume in ((2, "--resume"), (1, "--resume"), (2, "--overwrite")):
        snapshot.write_bytes(saved)
        code, _, err = console.run("generate", *shot, "--devices", devices, resume, "--overwrite")
        assert code == 0, err
        resumed_at = re.findall(r"resumes after step (\d+) of 120", err)
        assert all(int(step) >= 7 for step in resumed_at)
        assert bool(resumed_at) == (resume == "--resume")
        results.append(np.load(out))
    resumed, on_one_rank, uninterrupted = results
    np.testing.assert_array_equal(resumed, uninterrupted)
    np.testing.assert_allclose(on_one_rank, uninterrupted, rtol=0, atol=1e-4)


def test_batch(console: Console, toy: Path, frames: Frames, tmp_path: Path) -> None:
    shots, out = tmp_path / "shots.csv", tmp_path / "out"
    shots.write_text(
        "prompt,seed,output,guidance_rescale\na red circle,1,one.npy,\na red circle,1,two.npy,0\n"
    )
    code, stdout, err = console.run("batch", shots, "-o", out, "--model", toy)
    assert (code, stdout.splitlines()[-1].startswith("2 done")) == (0, True), err
    np.testing.assert_array_equal(np.load(out / "one.npy"), frames)
    assert abs(np.load(out / "two.npy") - frames).max() > 1e-3


def test_serve(toy: Path, site: Path, tmp_path: Path) -> None:
    path = environment(site)["PYTHONPATH"]
    with serving(tmp_path, "--model", str(toy), PYTHONPATH=path) as server:
        fields = {"seed": 1, "guidance_rescale": 0.25}
        video = server.wait(server.create(**fields)["id"])
        assert video["status"] == "completed", video
        content = server.client.get(f"/v1/videos/{video['id']}/content").content
        assert iio.imread(content, extension=".mp4", plugin="pyav").shape == (7, 32, 48, 3)
        refused = server.client.post("/v1/videos", json={"prompt": "a", "true_cfg_scale": 2})
        assert refused.status_code == 400
        assert "is not an option of" in refused.text
        document = server.client.get("/openapi.json").text
        assert "guidance_rescale" in document


def test_its_costs_are_counted(console: Console, toy: Path) -> None:
    plan = ("plan", "--model", toy, "--gpu", "h100", "--devices", 4, "--size", "960x640", "--json")
    code, out, err = console.run(*plan)
    assert code == 0, err
    best = json.loads(out)["best"]
    assert best["layout"]["cfg_degree"] == 2
    assert best["end_to_end_s"] > 0
    code, out, err = console.run("verify", "--model", toy, "--devices", 2)
    assert (code, out.splitlines()[-1].startswith("all within")) == (0, True), err
