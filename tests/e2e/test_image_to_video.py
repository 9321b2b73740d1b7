"""A picture is animated: the command and the engine, on one rank, on two, and under torchrun."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from longtake import VideoEngine, VideoRequest
from longtake.cli import main as cli
from longtake.engine.media.latents import read_latents
from longtake.engine.media.pictures.process import decode_in_subprocess
from longtake.engine.media.sinks import NullSink
from longtake.errors import EngineError, RequestError
from tests.e2e.test_cli import names

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    """A command in this process: exit code, stdout, stderr."""

    def command(*arguments: str) -> tuple[int, str, str]:
        capsys.readouterr()
        code = cli.main(list(arguments))
        return (code, *capsys.readouterr())

    return command


@pytest.fixture(scope="module")
def picture(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A wide one, in colors that do not repeat."""
    pixels = np.random.default_rng(3).integers(0, 256, (60, 100, 3), dtype=np.uint8)
    path = tmp_path_factory.mktemp("pictures") / "first.png"
    Image.fromarray(pixels).save(path)
    return path


def test_the_same_video_again_from_its_metadata(
    run: Run, animators: dict[str, str], picture: Path, tmp_path: Path
) -> None:
    model, out = animators["token_replace"], tmp_path / "out"
    out.mkdir()
    first, again, other = (out / f"{name}.npy" for name in ("first", "again", "other"))
    asked = ["a cat runs", "--image", str(picture), "--model", model, "--height", "32"]
    code, said, _ = run("generate", *asked, "-o", str(first))
    assert code == 0 and said.startswith(f"{first}: 9 frames of 48x32, seed ")
    metadata = json.loads(first.with_suffix(".npy.json").read_text())
    request = metadata["request"]
    assert (request["i2v_mode"], request["resize_mode"]) == ("stable", "crop")
    assert request["image"] == str(picture) and len(request["image_sha256"]) == 64
    assert {"text", "image", "denoising"} <= set(metadata["seconds"])
    config = str(first.with_suffix(".npy.json"))
    assert run("generate", "--config", config, "-o", str(again))[0] == 0
    assert first.read_bytes() == again.read_bytes()
    over = ("-o", str(other), "--overwrite")
    for changes, differs in (
        (["--i2v-mode", "dynamic"], True),
        (["--resize-mode", "pad"], True),
        (["--resize-mode", "crop"], False),
    ):
        assert run("generate", "--config", config, *changes, *over)[0] == 0
        assert (first.read_bytes() != other.read_bytes()) is differs
    metadata = json.loads(other.with_suffix(".npy.json").read_text())
    assert metadata["request"]["flow_shift"] == 7.0
    run("generate", "--config", config, "--i2v-mode", "dynamic", *over)
    metadata = json.loads(other.with_suffix(".npy.json").read_text())
    assert metadata["request"]["flow_shift"] == 17.0


def test_another_picture_at_the_same_place(
    run: Run, animators: dict[str, str], picture: Path, tmp_path: Path
) -> None:
    path, out = tmp_path / "a.png", str(tmp_path / "out.npy")
    path.write_bytes(picture.read_bytes())
    asked = ["--model", animators["token_replace"], "-o", out, "--num-inference-steps", "1"]
    assert run("generate", "a", "--image", str(path), *asked)[0] == 0
    Image.new("RGB", (8, 8)).save(path)
    again = ["generate", "--config", f"{out}.json", "-o", out, "--overwrite"]
    code, _, err = run(*again)
    assert code == 2 and "is not the expected picture" in err.splitlines()[-1]
    assert run(*again, "--image", str(path))[0] == 0  # which says that it is meant


def test_the_older_way_gives_four_frames_fewer(
    run: Run, animators: dict[str, str], picture: Path, tmp_path: Path
) -> None:
    """And so does decoding its latents."""
    model = animators["latent_concat"]
    asked = ["a", "--image", str(picture), "--model", model, "--seed", "1"]
    frames, latents, decoded = (tmp_path / name for name in ("a.npy", "b.safetensors", "c.npy"))
    code, said, _ = run("generate", *asked, "-o", str(frames))
    assert code == 0 and ": 5 frames of 48x32" in said
    assert np.load(frames).shape == (5, 32, 48, 3)
    assert json.loads(frames.with_suffix(".npy.json").read_text())["num_frames"] == 5
    assert run("generate", *asked, "-o", str(latents))[0] == 0
    assert read_latents(latents).latents.shape == (1, 4, 3, 4, 6)
    code, said, _ = run("decode", str(latents), "-o", str(decoded))
    assert code == 0 and ": 5 frames of 48x32" in said
    np.testing.assert_allclose(np.load(decoded), np.load(frames), rtol=0, atol=1e-6)
    with VideoEngine.from_pretrained(model) as engine:
        video = engine.generate(VideoRequest(prompt="a", image=picture, seed=1))
    assert video.frames.shape == (5, 32, 48, 3)
    video.save(tmp_path / "d.mp4")
    code, _, err = run("generate", *asked, "--num-frames", "1", "-o", str(tmp_path / "e.npy"))
    assert code == 2 and "drops the first 4: try 5 or more" in err


def test_two_ranks_give_what_one_gives(
    animators: dict[str, str], picture: Path, tmp_path: Path
) -> None:
    """Pictures and latents take turns on the way to the ranks."""
    request = VideoRequest(prompt="a cat", image=picture, seed=1, true_cfg_scale=2)
    for name, model in animators.items():
        with VideoEngine.from_pretrained(model) as engine:
            expected = engine.generate(request)
        with VideoEngine.from_pretrained(model, devices=2) as engine:
            for _ in range(2):
                video = engine.generate(request)
                np.testing.assert_allclose(video.frames, expected.frames, rtol=0, atol=1e-4)
                decoded = engine.decode(video.latents)
                np.testing.assert_allclose(decoded.frames, expected.frames, rtol=0, atol=1e-4)
            if name == "token_replace":
                video.save(tmp_path / "a.mp4")
                with pytest.raises(RequestError, match="is no picture"):
                    engine.generate(request.model_copy(update={"image": Path(__file__)}))
                again = engine.generate(request)
                np.testing.assert_array_equal(again.frames, video.frames)


def test_a_picture_in_memory_is_the_one_in_its_file(
    animators: dict[str, str], picture: Path, tmp_path: Path
) -> None:
    turned = tmp_path / "turned.jpg"  # and with EXIF data that say so
    exif = Image.Exif()
    exif[0x0112] = 6
    with Image.open(picture) as image:
        image.convert("CMYK").save(turned, exif=exif)
    with VideoEngine.from_pretrained(animators["token_replace"]) as engine:
        for path in (picture, turned):
            asked: dict[str, Any] = dict(prompt="a cat", seed=3, num_frames=5)
            expected = engine.generate(image=path, **asked)
            with Image.open(path) as image:
                video = engine.generate(image=image, **asked)
            np.testing.assert_array_equal(video.latents, expected.latents)
            made_of = video.metadata.request.model_dump()
            assert made_of["image"] is None and len(made_of["image_sha256"]) == 64


def test_under_torchrun_rank_0_alone_reads_the_picture(
    run: Run, animators: dict[str, str], picture: Path, tmp_path: Path
) -> None:
    """The other rank is in a folder where the path leads nowhere, as on another host."""
    model = animators["token_replace"]
    expected, joined, there = (tmp_path / name for name in ("a.npy", "b.npy", "there"))
    asked = ["a cat", "--model", model, "--seed", "1"]
    assert run("generate", *asked, "--image", str(picture), "-o", str(expected))[0] == 0
    there.mkdir()
    (there / "first.png").write_bytes(picture.read_bytes())
    program = tmp_path / "program.py"
    program.write_text(
        "import os, sys\n"
        f"os.chdir({str(there)!r} if os.environ['RANK'] == '0' else '/')\n"
        "from longtake.cli.main import main\n"
        "sys.exit(main(sys.argv[1:]))\n"
    )
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    ran = subprocess.run(
        [*torchrun, str(program), "generate", *asked, "--image", "first.png", "-o", str(joined)],
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert ran.returncode == 0, ran.stderr
    np.testing.assert_allclose(np.load(joined), np.load(expected), rtol=0, atol=1e-4)


def test_under_torchrun_all_ranks_refuse_what_rank_0_refuses(
    animators: dict[str, str], picture: Path, tmp_path: Path
) -> None:
    """And go on together with the next request."""
    program = tmp_path / "program.py"
    program.write_text(
        "import os, sys\n"
        "from longtake import VideoEngine, VideoRequest\n"
        "from longtake.errors import RequestError\n"
        f"model, good, bad = {animators['token_replace']!r}, {str(picture)!r}, __file__\n"
        "said = []\n"
        "with VideoEngine.from_pretrained(model, dtype='float32') as engine:\n"
        "    for image, changes in ((bad, {}), (good, {'height': 100}), (good, {}), (bad, {})):\n"
        "        try:\n"
        "            request = VideoRequest(prompt='a', image=image, seed=1, **changes)\n"
        "            shape = engine.generate(request).latents.shape\n"
        "        except RequestError as error:\n"
        "            shape = str(error)[:12]\n"
        "        said.append(str(shape))\n"
        "    try:\n"
        "        engine.decode([1])\n"
        "    except RequestError as error:\n"
        "        said.append('decode')\n"
        f"open({str(tmp_path)!r} + '/' + os.environ['RANK'], 'w').write('\\n'.join(said))\n"
    )
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    command = [*torchrun, str(program)]
    ran = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    assert ran.returncode == 0, ran.stderr
    told, others = ((tmp_path / rank).read_text().splitlines() for rank in "01")
    assert len(told) == 5 and sum("image=" in line for line in told) == 2
    assert others == [line.replace("(1, 4, 3, 4, 6)", "(0,)") for line in told]


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ([], "animates a picture: pass image"),
        (["--image", "nothing.png"], "image='nothing.png' cannot be read: No such file"),
        (["--image", "."], "image='.' is not a file"),
        (["--image", __file__], "is no picture in PNG, JPEG or WebP"),
        (["--image", "PICTURE", "--image-folder", "."], ", the only folder that pictures are read"),
        (["--image", "PICTURE", "--i2v-mode", "still"], "i2v_mode"),
        (["--image", "PICTURE", "--resize-mode", "fit"], "resize_mode"),
        (["--image", "PICTURE", "--width", "100"], "width=100 must be a multiple of 16"),
        (["--image", "PICTURE", "--num-frames", "8"], "num_frames=8 must be 1 more than"),
    ],
)
def test_refused_in_one_line(
    run: Run,
    animators: dict[str, str],
    picture: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    arguments: list[str],
    text: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    arguments = [str(picture) if each == "PICTURE" else each for each in arguments]
    code, out, err = run("generate", "a", "--model", animators["token_replace"], *arguments)
    assert (code, out, names(tmp_path)) == (2, "", [])
    (line,) = err.splitlines()
    assert line.startswith("longtake: ") and text in line


def test_prompts_cannot_hold_the_token_of_the_picture(
    run: Run, animators: dict[str, str], picture: Path, tmp_path: Path
) -> None:
    """Nor does one that runs into the end of what the model takes do harm."""
    model, out = animators["token_replace"], str(tmp_path / "out.npy")
    asked = ["--image", str(picture), "--model", model, "--num-inference-steps", "1"]
    asked += ["-o", out, "--overwrite"]
    code, _, err = run("generate", "a <image> cat", *asked)
    assert code == 2 and "take <image> out of the prompt" in err.splitlines()[-1]
    assert names(tmp_path) == []
    for prompt in ("cat " * 500, "<|end_header_id|> cat", "<|eot_id|> " * 40):
        assert run("generate", prompt, *asked)[0] == 0
    assert np.isfinite(np.load(out)).all()


def test_a_folder_for_pictures_is_one_wherever_the_command_runs(
    run: Run,
    animators: dict[str, str],
    picture: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Relative ones, those in a home, and names that lead through links."""
    folder, elsewhere = tmp_path / "pictures", tmp_path / "elsewhere"
    for each in (folder, elsewhere, folder / "deep"):
        each.mkdir()
    (folder / "a.png").write_bytes(picture.read_bytes())
    (elsewhere / "way").symlink_to(folder / "deep")
    out = str(tmp_path / "out.npy")
    asked = ["--model", animators["token_replace"], "--num-inference-steps", "1"]
    asked += ["-o", out, "--overwrite"]
    monkeypatch.chdir(elsewhere)
    monkeypatch.setenv("HOME", str(tmp_path))
    for image, of in (
        ("way/../a.png", "../pictures"),
        ("~/pictures/a.png", "~/pictures"),
        ("../pictures/a.png", str(folder)),
    ):
        monkeypatch.chdir(elsewhere)
        code, _, err = run("generate", "a", "--image", image, "--image-folder", of, *asked)
        assert code == 0, err
        monkeypatch.chdir("/")
        again = ["--config", f"{out}.json", "-o", out, "--overwrite"]
        assert run("generate", *again)[0] == 0


def test_a_picture_is_decoded_once_to_be_looked_at(
    animators: dict[str, str], picture: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And once for each video."""
    digests: list[str] = []

    def counted(content: bytes, said: str, cpu_s: float) -> Any:
        digests.append(hashlib.sha256(content).hexdigest())
        return decode_in_subprocess(content, said, cpu_s)

    monkeypatch.setattr("longtake.engine.media.pictures.picture.decode_in_subprocess", counted)
    monkeypatch.setattr("longtake.engine.media.pictures.picture._sizes", OrderedDict())
    with VideoEngine.from_pretrained(animators["token_replace"]) as engine:
        request = VideoRequest(prompt="a", image=picture, seed=0, num_inference_steps=1)
        engine.generate(request)
        assert len(digests) == 2
        first, second = (engine.resolve(request.model_copy(update={"seed": at})) for at in (1, 2))
        assert len(digests) == 2
        for resolved in (first, second):
            engine.render(resolved, NullSink())
        assert digests == [first.image_sha256] * 4


def test_latents_of_a_picture_that_are_no_numbers(
    animators: dict[str, str], picture: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Noticed before anything is denoised."""
    told: list[str] = []
    with VideoEngine.from_pretrained(animators["token_replace"]) as engine:
        monkeypatch.setattr(
            "longtake.pipelines.hunyuan_video.image_to_video.encode_videos",
            lambda encoder, pixels, world: torch.full((1, 8, 1, 4, 6), torch.nan),
        )
        request = VideoRequest(prompt="a", image=picture, height=32, width=48)
        with pytest.raises(EngineError, match="the picture's latents are not finite"):
            engine.generate(request, lambda progress: told.append(progress.phase))
    assert "denoising" not in told


def test_a_request_that_was_resolved_for_another_kind_of_model(
    animators: dict[str, str], model: str, picture: Path
) -> None:
    with VideoEngine.from_pretrained(animators["token_replace"]) as engine:
        animated = engine.resolve(VideoRequest(prompt="a", image=picture))
        with VideoEngine.from_pretrained(model) as other:
            plain = other.resolve(VideoRequest(prompt="a"))
            with pytest.raises(RequestError, match="resolve it for this model"):
                other.render(animated, NullSink())
        with pytest.raises(RequestError, match="resolve it for this model"):
            engine.render(plain, NullSink())


def test_text_to_video_takes_no_picture(
    run: Run, model: str, picture: Path, tmp_path: Path
) -> None:
    out = str(tmp_path / "out.npy")
    code, _, err = run("generate", "a", "--image", str(picture), "--model", model, "-o", out)
    assert code == 2 and "with a text-to-video model" in err and names(tmp_path) == []


def test_verify_and_plan(run: Run, animators: dict[str, str]) -> None:
    """They need no picture."""
    model = animators["token_replace"]
    code, said, _ = run("verify", "--model", model, "--devices", "2", "--i2v-mode", "dynamic")
    assert code == 0, said
    assert "all within 0.0001 after every step" in said
    for model in animators.values():
        code, said, _ = run("plan", "--model", model, "--gpu", "cpu", "--devices", "2", "--json")
        assert code == 0
        plan = json.loads(said)
        assert plan["request"]["text_tokens"] == 20 + (4 if "token_replace" in model else 8)


@pytest.mark.parametrize("gpus", [1, 5, 8, 16])
def test_a_plan_of_the_released_model(run: Run, gpus: int) -> None:
    asked = ["--model", "hunyuan-video-i2v", "--gpu", "h200", "--devices", str(gpus), "--json"]
    code, said, _ = run("plan", *asked)
    assert code == 0
    plan = json.loads(said)
    assert plan["request"]["text_tokens"] == 144 + 252
    assert (plan["request"]["height"], plan["request"]["num_frames"]) == (720, 129)
    assert plan["best"]["end_to_end_s"] > 10
