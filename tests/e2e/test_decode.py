"""longtake decode, and the latents that are left when decoding fails."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from longtake import DecodeRequest, VideoEngine, VideoRequest
from longtake.cli import main as cli
from longtake.engine import Progress
from longtake.engine.media.latents import read_latents
from longtake.engine.media.paths import OutputTarget
from longtake.engine.media.video_writer import VideoFiles
from longtake.errors import EngineError, RequestError
from tests.e2e.test_cli import names
from tests.e2e.test_engine import ranks_of

SMALL_TILES = ["--decode-tile-size", "4", "32", "32"]
MANY_FRAMES = ["--num-frames", "33", "--height", "64", "--width", "64", *SMALL_TILES]
"""Of which the decoding takes some seconds."""


def close(one: Path, other: Path) -> None:
    """Compare frames; this process and ranks may differ in threads, and so in the last bits."""
    np.testing.assert_allclose(np.load(one), np.load(other), rtol=0, atol=1e-5)


@pytest.mark.parametrize("devices", [1, 2])
def test_latents_of_generate_decode_to_its_video(
    longtake: Any, tmp_path: Path, devices: int
) -> None:
    """Seed, tiles and frame rate come from the file; the metadata renders the video again."""
    ours, theirs, again = (tmp_path / f"{name}.npy" for name in "abc")
    latents = tmp_path / "latents.safetensors"
    options = ["a cat", "--seed", 7, "--fps", 5, "--width", 80, *SMALL_TILES]
    assert longtake("generate", *options, "-o", theirs)[0] == 0
    assert longtake("generate", *options, "-o", latents)[0] == 0
    code, out, _ = longtake("decode", latents, "-o", ours, "--devices", devices)
    assert code == 0
    ranks = "1 rank" if devices == 1 else f"{devices} ranks"
    assert out.startswith(f"{ours}: 9 frames of 80x32, seed 7, on {ranks}; seconds: loading ")
    close(ours, theirs)
    request = json.loads((tmp_path / "a.npy.json").read_text())["request"]
    assert request == json.loads((tmp_path / "b.npy.json").read_text())["request"]
    metadata = str(tmp_path / "a.npy.json")
    assert longtake("generate", "--config", metadata, "-o", again, "--devices", 1)[0] == 0
    close(again, theirs)


def test_flags_override_the_header(longtake: Any, tmp_path: Path) -> None:
    latents, ours, theirs = (tmp_path / name for name in ("l.safetensors", "a.npy", "b.npy"))
    options = ["a cat", "--seed", 7, "--width", 80]
    assert longtake("generate", *options, *SMALL_TILES, "-o", latents)[0] == 0
    assert longtake("generate", *options, "--decode", "whole", "-o", theirs)[0] == 0
    assert longtake("decode", latents, "--decode", "whole", "--fps", 3, "-o", ours)[0] == 0
    close(ours, theirs)
    request = json.loads((tmp_path / "a.npy.json").read_text())["request"]
    assert (request["decode"], request["decode_tile_size"], request["fps"]) == ("whole", None, 3)


def test_latents_without_a_header(longtake: Any, tmp_path: Path) -> None:
    latents = np.random.default_rng(0).standard_normal((2, 4, 2, 4, 6)).astype(np.float16)
    save_file({"samples": latents}, tmp_path / "l.safetensors")
    code, out, _ = longtake("decode", tmp_path / "l.safetensors", "-o", tmp_path / "out.npy")
    assert code == 0
    assert "out-0.npy" in out and "seed" not in out
    assert names(tmp_path) == ["l.safetensors", "out-0.npy", "out-1.npy", "out.npy.json"]
    assert np.load(tmp_path / "out-1.npy").shape == (5, 32, 48, 3)
    assert json.loads((tmp_path / "out.npy.json").read_text())["request"]["fps"] == 8


@pytest.mark.parametrize("frames", [1, 2, 4])
def test_latents_with_another_shape_than_the_header(
    longtake: Any, tmp_path: Path, frames: int
) -> None:
    """The tensor counts, not the header."""
    path, out = tmp_path / "l.safetensors", tmp_path / "out.npy"
    assert longtake("generate", "a cat", "--fps", 5, "-o", path)[0] == 0
    with safe_open(path, framework="np") as file:
        header, latents = file.metadata(), file.get_tensor("latents")
    changed = np.concatenate([latents, latents], axis=1)[:, :frames]
    save_file({"latents": np.ascontiguousarray(changed)}, path, metadata=header)
    assert longtake("decode", path, "-o", out)[0] == 0
    assert np.load(out).shape == (4 * frames - 3, 32, 48, 3)
    request = json.loads((tmp_path / "out.npy.json").read_text())["request"]
    assert (request["num_frames"], request["fps"]) == (4 * frames - 3, 5)


RANDOM = np.random.default_rng(0).standard_normal((4, 2, 4, 6)).astype(np.float32)
BAD_FILES: dict[str, tuple[Callable[[Path], Any], str]] = {
    "missing": (lambda path: None, "cannot be read: No such file or directory"),
    "a folder": (lambda path: path.mkdir(), "cannot be read: Is a directory"),
    "a text": (lambda path: path.write_text("a cat"), "is no whole safetensors file"),
    "empty": (lambda path: path.touch(), "is no whole safetensors file"),
    "two": (lambda path: save_file({"a": RANDOM, "b": RANDOM}, path), "holds 2 tensors, none of"),
    "flat": (lambda path: save_file({"a": RANDOM[0]}, path), "of shape [2, 4, 6] must have chan"),
    "no frames": (lambda path: save_file({"a": RANDOM[:, :0]}, path), "none may be 0"),
    "integers": (lambda path: save_file({"a": RANDOM.astype(int)}, path), "holds I64: latents are"),
    "no number": (lambda path: save_file({"a": RANDOM * np.nan}, path), "must be finite"),
    "too wide": (lambda path: save_file({"a": RANDOM[:1]}, path), "latents of 1 channels: this"),
    "a header": (
        lambda path: save_file({"a": RANDOM}, path, metadata={"longtake": "{}"}),
        "its header is of another version of longtake, or damaged (request is missing",
    ),
}


@pytest.mark.parametrize("name", BAD_FILES)
def test_files_without_latents_are_refused(longtake: Any, tmp_path: Path, name: str) -> None:
    make, text = BAD_FILES[name]
    path, out = tmp_path / "l.safetensors", tmp_path / "out"
    out.mkdir()
    make(path)
    code, _, err = longtake("decode", path, "-o", out / "out.mp4")
    assert (code, len(err.splitlines()), names(out)) == (2, 1, [])
    assert text in err


def test_truncated_file_is_refused(longtake: Any, tmp_path: Path) -> None:
    path = tmp_path / "l.safetensors"
    save_file({"latents": RANDOM}, path)
    path.write_bytes(path.read_bytes()[:-1])
    code, _, err = longtake("decode", path)
    assert (code, len(err.splitlines())) == (2, 1)
    assert "is no whole safetensors file" in err


@pytest.mark.parametrize(
    ("options", "text"),
    [
        (["-o", "x.safetensors"], "is for latents, which the input is already"),
        (["-o", "x.avi"], "has the suffix '.avi'"),
        (["--decode", "half"], "decode='half' must be tiled, framewise or whole"),
        (["--decode", "whole", *SMALL_TILES], "with decode=whole, which has no tiles"),
        (["--decode-tile-size", "4", "30", "32"], "decode_tile_size=4 30 32 must be multiples of"),
        (["--decode-tile-size", "0", "32", "32"], "decode_tile_size.0='0' must be at least"),
        (["--decode-tile-stride", "12", "264", "192"], "must be at most decode_tile_size=16 256"),
        (["--devices", "0"], "devices='0' must be at least 1"),
        (["--model", "/no/where"], "there is no folder /no/where"),
        (["--fps", "nan"], "fps='nan' must be a finite number"),
    ],
)
def test_invalid_options_are_one_line_and_exit_code_2(
    longtake: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: list[str], text: str
) -> None:
    monkeypatch.chdir(tmp_path)
    save_file({"latents": RANDOM}, "l.safetensors")
    code, _, err = longtake("decode", "l.safetensors", *options)
    assert (code, len(err.splitlines()), names(tmp_path)) == (2, 1, ["l.safetensors"])
    assert text in err


def test_video_that_does_not_fit_whole_is_refused(longtake: Any, tmp_path: Path) -> None:
    """Refused before denoising."""
    size = ["--height", "2048", "--width", "2048", "--num-frames", "129"]
    path = tmp_path / "out.mp4"
    code, _, err = longtake("generate", "a", "--decode", "whole", *size, "-o", path)
    assert (code, names(tmp_path)) == (2, [])
    assert "encoding the prompt" not in err
    last = err.splitlines()[-1]
    assert last.startswith("longtake: decode=whole needs about ")
    assert last.endswith(" GiB are free on a rank: try decode=tiled")


def test_unknown_option_names_the_help_of_its_command(longtake: Any, capsys: Any) -> None:
    with pytest.raises(SystemExit):
        longtake("decode", "l.safetensors", "--prompt", "a cat")
    assert capsys.readouterr().err.endswith("see longtake decode --help\n")


@pytest.mark.parametrize("devices", [1, 2])
def test_frames_are_written_while_others_are_decoded(
    model: str, tmp_path: Path, devices: int
) -> None:
    request = VideoRequest(
        prompt="a cat", num_frames=33, height=64, width=64, seed=1, decode_tile_size=(4, 32, 32)
    )
    frame_bytes = 64 * 64 * 3 * 4
    frames_then: dict[int, int] = {}
    total = 0

    def look(progress: Progress) -> None:
        nonlocal total
        if progress.phase == "decoding":
            sizes = [path.stat().st_size for path in tmp_path.glob(".*.npy")]
            frames_then[progress.done] = sum(sizes) // frame_bytes
            total = progress.total

    with VideoEngine.from_pretrained(model, devices=devices) as engine:
        resolved = engine.resolve(request)
        with VideoFiles(OutputTarget(tmp_path / "out.npy"), resolved, engine.config) as files:
            files.publish(engine.render(resolved, files, look).as_json())
    assert total > 50
    assert frames_then[total // 2] >= 10
    assert 20 <= frames_then[total - 1] < 33
    assert np.load(tmp_path / "out.npy").shape == (33, 64, 64, 3)
    assert names(tmp_path) == ["out.npy", "out.npy.json"]


def test_python_api(model: str, tmp_path: Path) -> None:
    with VideoEngine.from_pretrained(model, devices=2) as engine:
        video = engine.generate(VideoRequest(prompt="a cat", seed=1, num_videos=2))
        again = engine.decode(video.latents, DecodeRequest(fps=3))
        assert len(again.batch) == 2
        for ours, theirs in zip(again.batch, video.batch, strict=True):
            np.testing.assert_array_equal(ours, theirs)
        np.testing.assert_array_equal(again.latents, video.latents)
        assert again.metadata.request.fps == 3
        assert set(again.metadata.seconds) == {"loading", "decoding"}
        one = engine.decode(video.latents[1].tolist(), DecodeRequest(decode="framewise"))
        np.testing.assert_array_equal(one.frames, video.batch[1])
        with pytest.raises(RequestError, match="latents of 2 channels: this model's have 4"):
            engine.decode(video.latents[:, :2])
        with pytest.raises(RequestError, match="must be an array of numbers"):
            engine.decode([[1.0], [2.0, 3.0]])
        with pytest.raises(RequestError, match="must be finite"):
            engine.decode(video.latents * np.inf)
        paths = [tmp_path / "out-0.mp4", tmp_path / "out-1.mp4"]
        assert again.save(tmp_path / "out.mp4") == paths
        with pytest.raises(RequestError, match="out-0.mp4' already exists"):
            video.save(tmp_path / "out.mp4")
        assert video.save(tmp_path / "out.mp4", overwrite=True) == paths


def test_latents_survive_a_dead_rank(model: str) -> None:
    request = VideoRequest(
        prompt="a cat", num_frames=33, height=64, width=64, seed=1, decode_tile_size=(4, 32, 32)
    )
    decode_request = DecodeRequest(decode_tile_size=request.decode_tile_size)
    with VideoEngine.from_pretrained(model, devices=2) as engine:
        expected = engine.generate(request)
        ranks = ranks_of(engine)

        def kill(progress: Progress) -> None:
            if progress.phase == "decoding" and progress.done == 10:
                ranks[1].kill()

        with pytest.raises(EngineError, match="rank 1 was killed by SIGKILL") as caught:
            engine.generate(request, kill)
        np.testing.assert_array_equal(caught.value.latents, expected.latents)
        np.testing.assert_array_equal(
            engine.decode(expected.latents, decode_request).frames, expected.frames
        )


def test_autoencoder_only_engine(model: str) -> None:
    latents: npt.NDArray[Any] = RANDOM
    with VideoEngine.from_pretrained(model, autoencoder_only=True) as engine:
        assert engine.decode(latents).frames.shape == (5, 32, 48, 3)
        with pytest.raises(RequestError, match="autoencoder_only=True can decode, not generate"):
            engine.generate(VideoRequest(prompt="a cat"))


def test_torchrun_decodes(longtake: Any, model: str, tmp_path: Path) -> None:
    """Only rank 0 reads the file, which determines the dtype."""
    expected, joined, latents = (tmp_path / name for name in ("a.npy", "b.npy", "l.safetensors"))
    options = ["a cat", "--seed", 1, "--vae-dtype", "bfloat16", *SMALL_TILES]
    assert longtake("generate", *options, "-o", latents)[0] == 0
    assert longtake("decode", latents, "-o", expected)[0] == 0
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=3"]
    decode = [
        "-m",
        "longtake",
        "decode",
        str(latents),
        "--model",
        model,
        "-o",
        str(joined),
    ]
    ran = subprocess.run([*torchrun, *decode], capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.count("on 3 ranks") == 1
    np.testing.assert_allclose(np.load(joined), np.load(expected), rtol=0, atol=1e-2)
    assert np.abs(np.load(joined) - np.load(expected)).mean() < 1e-4


def test_decode_under_torchrun_needs_a_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert cli.main(["decode", str(tmp_path / "l.safetensors")]) == 2
    assert "torchrun needs --model" in capsys.readouterr().err


def test_header_describes_the_request(longtake: Any, tmp_path: Path) -> None:
    path = tmp_path / "l.safetensors"
    options = ["a cat", "--seed", 5, "--vae-dtype", "bfloat16"]
    assert longtake("generate", *options, "-o", path)[0] == 0
    file = read_latents(path)
    assert file.origin is not None
    assert (file.origin.request.prompt, file.origin.request.seed) == ("a cat", 5)
    assert file.origin.engine.vae_dtype == "bfloat16"
    np.testing.assert_array_equal(file.latents[0], load_file(path)["latents"])
    assert longtake("decode", path, "-o", tmp_path / "out.npy")[0] == 0
    metadata = json.loads((tmp_path / "out.npy.json").read_text())
    assert metadata["engine"]["vae_dtype"] == metadata["decoded_by"]["vae_dtype"] == "bfloat16"
    again = ("-o", tmp_path / "out.npy", "--overwrite")
    assert longtake("decode", path, *again, "--dtype", "float32")[0] == 0
    metadata = json.loads((tmp_path / "out.npy.json").read_text())
    assert metadata["engine"]["vae_dtype"] == "float32"
    assert os.path.getsize(path) < 10_000
