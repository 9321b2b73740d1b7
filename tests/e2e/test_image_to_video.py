"""Image-to-video by the command and the engine, on one rank, on two, and under torchrun."""

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
from longtake.engine.media.latents import read_latents
from longtake.engine.media.pictures.process import decode_in_subprocess
from longtake.engine.media.sinks import NullSink
from longtake.errors import EngineError, RequestError
from tests.e2e.test_cli import names

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture(scope="module")
def picture(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A wide picture without repeating colors."""
    pixels = np.random.default_rng(3).integers(0, 256, (60, 100, 3), dtype=np.uint8)
    path = tmp_path_factory.mktemp("pictures") / "first.png"
    Image.fromarray(pixels).save(path)
    return path


def test_metadata_renders_the_same_video(
    run_command: Run, animators: dict[str, str], picture: Path, tmp_path: Path
) -> None:
    model, out = animators["token_replace"], tmp_path / "out"
    out.mkdir()
    first, again, other = (out / f"{name}.npy" for name in ("first", "again", "other"))
    options = ["a cat runs", "--image", str(picture), "--model", model, "--height", "32"]
    code, stdout, _ = run_command("generate", *options, "-o", str(first))
    assert code == 0 and stdout.startswith(f"{first}: 9 frames of 48x32, seed ")
    metadata = json.loads(first.with_suffix(".npy.json").read_text())
    request = metadata["request"]
    assert (request["i2v_mode"], request["resize_mode"]) == ("stable", "crop")
    assert request["image"] == str(picture) and len(request["image_sha256"]) == 64
    assert {"text", "image", "denoising"} <= set(metadata["seconds"])
    config = str(first.with_suffix(".npy.json"))
    assert run_command("generate", "--config", config, "-o", str(again))[0] == 0
    assert first.read_bytes() == again.read_bytes()
    over = ("-o", str(other), "--overwrite")
    for changes, differs in (
        (["--i2v-mode", "dynamic"], True),
        (["--resize-mode", "pad"], True),
        (["--resize-mode", "crop"], False),
    ):
        assert run_command("generate", "--config", config, *changes, *over)[0] == 0
        assert (first.read_bytes() != other.read_bytes()) is differs
    metadata = json.loads(other.with_suffix(".npy.json").read_text())
    assert metadata["request"]["flow_shift"] == 7.0
    run_command("generate", "--config", config, "--i2v-mode", "dynamic", *over)
    metadata = json.loads(other.with_suffix(".npy.json").read_text())
    assert metadata["request"]["flow_shift"] == 17.0


def test_replaced_picture_is_noticed(
    run_command: Run, animators: dict[str, str], picture: Path, tmp_path: Path
) -> None:
    path, out = tmp_path / "a.png", str(tmp_path / "out.npy")
    path.write_bytes(picture.read_bytes())
    options = ["--model", animators["token_replace"], "-o", out, "--num-inference-steps", "1"]
    assert run_command("generate", "a", "--image", str(path), *options)[0] == 0
    Image.new("RGB", (8, 8)).save(path)
    again = ["generate", "--config", f"{out}.json", "-o", out, "--overwrite"]
    code, _, err = run_command(*again)
    assert code == 2 and "is not the expected picture" in err.splitlines()[-1]
    assert run_command(*again, "--image", str(path))[0] == 0  # an explicit picture is accepted


def test_latent_concat_gives_four_frames_fewer(
    run_command: Run, animators: dict[str, str], picture: Path, tmp_path: Path
) -> None:
    """Both when generated and when decoded from latents."""
    model = animators["latent_concat"]
    options = ["a", "--image", str(picture), "--model", model, "--seed", "1"]
    frames, latents, decoded = (tmp_path / name for name in ("a.npy", "b.safetensors", "c.npy"))
    code, stdout, _ = run_command("generate", *options, "-o", str(frames))
    assert code == 0 and ": 5 frames of 48x32" in stdout
    assert np.load(frames).shape == (5, 32, 48, 3)
    assert json.loads(frames.with_suffix(".npy.json").read_text())["num_frames"] == 5
    assert run_command("generate", *options, "-o", str(latents))[0] == 0
    assert read_latents(latents).latents.shape == (1, 4, 3, 4, 6)
    code, stdout, _ = run_command("decode", str(latents), "-o", str(decoded))
    assert code == 0 and ": 5 frames of 48x32" in stdout
    np.testing.assert_allclose(np.load(decoded), np.load(frames), rtol=0, atol=1e-6)
    with VideoEngine.from_pretrained(model) as engine:
        video = engine.generate(VideoRequest(prompt="a", image=picture, seed=1))
    assert video.frames.shape == (5, 32, 48, 3)
    video.save(tmp_path / "d.mp4")
    code, _, err = run_command(
        "generate", *options, "--num-frames", "1", "-o", str(tmp_path / "e.npy")
    )
    assert code == 2 and "drops the first 4: try 5 or more" in err


def test_two_ranks_give_the_video_of_one(
    animators: dict[str, str], picture: Path, tmp_path: Path
) -> None:
    """Requests with pictures and decodings of latents alternate."""
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


def test_picture_in_memory_equals_its_file(
    animators: dict[str, str], picture: Path, tmp_path: Path
) -> None:
    turned = tmp_path / "turned.jpg"  # with an EXIF orientation
    exif = Image.Exif()
    exif[0x0112] = 6
    with Image.open(picture) as image:
        image.convert("CMYK").save(turned, exif=exif)
    with VideoEngine.from_pretrained(animators["token_replace"]) as engine:
        for path in (picture, turned):
            fields: dict[str, Any] = dict(prompt="a cat", seed=3, num_frames=5)
            expected = engine.generate(image=path, **fields)
            with Image.open(path) as image:
                video = engine.generate(image=image, **fields)
            np.testing.assert_array_equal(video.latents, expected.latents)
            made_of = video.metadata.request.model_dump()
            assert made_of["image"] is None and len(made_of["image_sha256"]) == 64


def test_only_rank_0_of_torchrun_reads_the_picture(
    run_command: Run, animators: dict[str, str], picture: Path, tmp_path: Path
) -> None:
    """On the other rank the path does not exist, as on another host."""
    model = animators["token_replace"]
    expected, joined, there = (tmp_path / name for name in ("a.npy", "b.npy", "there"))
    options = ["a cat", "--model", model, "--seed", "1"]
    assert run_command("generate", *options, "--image", str(picture), "-o", str(expected))[0] == 0
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
        [*torchrun, str(program), "generate", *options, "--image", "first.png", "-o", str(joined)],
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert ran.returncode == 0, ran.stderr
    np.testing.assert_allclose(np.load(joined), np.load(expected), rtol=0, atol=1e-4)


def test_refusal_of_rank_0_is_raised_on_all_torchrun_ranks(
    animators: dict[str, str], picture: Path, tmp_path: Path
) -> None:
    """They continue with the next request."""
    program = tmp_path / "program.py"
    program.write_text(
        "import os, sys\n"
        "from longtake import VideoEngine, VideoRequest\n"
        "from longtake.errors import RequestError\n"
        f"model, good, bad = {animators['token_replace']!r}, {str(picture)!r}, __file__\n"
        "lines = []\n"
        "with VideoEngine.from_pretrained(model, dtype='float32') as engine:\n"
        "    for image, changes in ((bad, {}), (good, {'height': 100}), (good, {}), (bad, {})):\n"
        "        try:\n"
        "            request = VideoRequest(prompt='a', image=image, seed=1, **changes)\n"
        "            shape = engine.generate(request).latents.shape\n"
        "        except RequestError as error:\n"
        "            shape = str(error)[:12]\n"
        "        lines.append(str(shape))\n"
        "    try:\n"
        "        engine.decode([1])\n"
        "    except RequestError as error:\n"
        "        lines.append('decode')\n"
        f"open({str(tmp_path)!r} + '/' + os.environ['RANK'], 'w').write('\\n'.join(lines))\n"
    )
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    command = [*torchrun, str(program)]
    ran = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    assert ran.returncode == 0, ran.stderr
    lines, others = ((tmp_path / rank).read_text().splitlines() for rank in "01")
    assert len(lines) == 5 and sum("image=" in line for line in lines) == 2
    assert others == [line.replace("(1, 4, 3, 4, 6)", "(0,)") for line in lines]


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
    run_command: Run,
    animators: dict[str, str],
    picture: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    arguments: list[str],
    text: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    arguments = [str(picture) if each == "PICTURE" else each for each in arguments]
    code, out, err = run_command("generate", "a", "--model", animators["token_replace"], *arguments)
    assert (code, out, names(tmp_path)) == (2, "", [])
    (line,) = err.splitlines()
    assert line.startswith("longtake: ") and text in line


def test_prompt_with_the_image_token_is_refused(
    run_command: Run, animators: dict[str, str], picture: Path, tmp_path: Path
) -> None:
    """A prompt that is truncated at the model's limit renders."""
    model, out = animators["token_replace"], str(tmp_path / "out.npy")
    options = ["--image", str(picture), "--model", model, "--num-inference-steps", "1"]
    options += ["-o", out, "--overwrite"]
    code, _, err = run_command("generate", "a <image> cat", *options)
    assert code == 2 and "take <image> out of the prompt" in err.splitlines()[-1]
    assert names(tmp_path) == []
    for prompt in ("cat " * 500, "<|end_header_id|> cat", "<|eot_id|> " * 40):
        assert run_command("generate", prompt, *options)[0] == 0
    assert np.isfinite(np.load(out)).all()


def test_picture_folder_does_not_depend_on_the_working_directory(
    run_command: Run,
    animators: dict[str, str],
    picture: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Relative folders, ~ and symbolic links."""
    folder, elsewhere = tmp_path / "pictures", tmp_path / "elsewhere"
    for each in (folder, elsewhere, folder / "deep"):
        each.mkdir()
    (folder / "a.png").write_bytes(picture.read_bytes())
    (elsewhere / "way").symlink_to(folder / "deep")
    out = str(tmp_path / "out.npy")
    options = ["--model", animators["token_replace"], "--num-inference-steps", "1"]
    options += ["-o", out, "--overwrite"]
    monkeypatch.chdir(elsewhere)
    monkeypatch.setenv("HOME", str(tmp_path))
    for image, of in (
        ("way/../a.png", "../pictures"),
        ("~/pictures/a.png", "~/pictures"),
        ("../pictures/a.png", str(folder)),
    ):
        monkeypatch.chdir(elsewhere)
        code, _, err = run_command(
            "generate", "a", "--image", image, "--image-folder", of, *options
        )
        assert code == 0, err
        monkeypatch.chdir("/")
        again = ["--config", f"{out}.json", "-o", out, "--overwrite"]
        assert run_command("generate", *again)[0] == 0


def test_picture_is_decoded_once_to_be_checked(
    animators: dict[str, str], picture: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is decoded again for each video."""
    digests: list[str] = []

    def counted(content: bytes, label: str, cpu_s: float) -> Any:
        digests.append(hashlib.sha256(content).hexdigest())
        return decode_in_subprocess(content, label, cpu_s)

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


def test_non_finite_picture_latents_are_refused(
    animators: dict[str, str], picture: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Refused before denoising."""
    phases: list[str] = []
    with VideoEngine.from_pretrained(animators["token_replace"]) as engine:
        monkeypatch.setattr(
            "longtake.pipelines.models.hunyuan_video.codec.autoencoder.encode_videos",
            lambda encoder, pixels, world: torch.full((1, 8, 1, 4, 6), torch.nan),
        )
        request = VideoRequest(prompt="a", image=picture, height=32, width=48)
        with pytest.raises(EngineError, match="the picture's latents are not finite"):
            engine.generate(request, lambda progress: phases.append(progress.phase))
    assert "denoising" not in phases


def test_request_resolved_for_another_kind_of_model_is_refused(
    animators: dict[str, str], model: str, picture: Path
) -> None:
    with VideoEngine.from_pretrained(animators["token_replace"]) as engine:
        animated = engine.resolve(VideoRequest(prompt="a", image=picture))
        with VideoEngine.from_pretrained(model) as other:
            plain = other.resolve(VideoRequest(prompt="a"))
            with pytest.raises(RequestError, match="i2v_mode=stable is not an option of"):
                other.render(animated, NullSink())
        with pytest.raises(RequestError, match="animates a picture: pass image"):
            engine.render(plain, NullSink())


def test_text_to_video_refuses_a_picture(
    run_command: Run, model: str, picture: Path, tmp_path: Path
) -> None:
    out = str(tmp_path / "out.npy")
    code, _, err = run_command(
        "generate", "a", "--image", str(picture), "--model", model, "-o", out
    )
    assert code == 2 and "with a model that takes no picture" in err and names(tmp_path) == []


def test_verify_and_plan_need_no_picture(run_command: Run, animators: dict[str, str]) -> None:
    model = animators["token_replace"]
    code, stdout, _ = run_command(
        "verify", "--model", model, "--devices", "2", "--i2v-mode", "dynamic"
    )
    assert code == 0, stdout
    assert "all within 0.0001 after every step" in stdout
    for model in animators.values():
        code, stdout, _ = run_command(
            "plan", "--model", model, "--gpu", "cpu", "--devices", "2", "--json"
        )
        assert code == 0
        plan = json.loads(stdout)
        assert plan["request"]["text_tokens"] == 20 + (4 if "token_replace" in model else 8)


@pytest.mark.parametrize("gpus", [1, 5, 8, 16])
def test_plan_of_the_released_model(run_command: Run, gpus: int) -> None:
    options = ["--model", "hunyuan-video-i2v", "--gpu", "h200", "--devices", str(gpus), "--json"]
    code, stdout, _ = run_command("plan", *options)
    assert code == 0
    plan = json.loads(stdout)
    assert plan["request"]["text_tokens"] == 144 + 252
    assert (plan["request"]["height"], plan["request"]["num_frames"]) == (720, 129)
    assert plan["best"]["end_to_end_s"] > 10
