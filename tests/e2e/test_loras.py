"""LoRAs of requests: generate, batch, and the engine whose ranks stay alive between them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from longtake import VideoEngine, VideoRequest
from longtake.configs.engine import EngineConfig
from longtake.engine.loras.choice import LORAS_STAGE
from longtake.errors import RequestError
from tests.simple_loras import save_lora

LAYERS = ("transformer_blocks.0.attn.to_q", "single_transformer_blocks.0.proj_out")
SMALL = ("--num-frames", 5, "--num-inference-steps", 1)

Command = Callable[..., tuple[int, str, str]]


@pytest.fixture(scope="module")
def folder(model: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of LoRAs for the tiny model, and of files that are none."""
    folder = tmp_path_factory.mktemp("loras")
    save_lora(folder / "style.safetensors", model, LAYERS, 1)
    save_lora(folder / "motion.safetensors", model, LAYERS[:1], 2)
    (folder / "damaged.safetensors").write_bytes(b"\0" * 100)
    return folder


def request(*loras: str, **changes: Any) -> VideoRequest:
    small = dict(prompt="a cat walks", seed=5, num_frames=5, num_inference_steps=1)
    return VideoRequest(**{**small, "lora": loras or None, **changes})


def test_on_ranks_that_stay_alive(model: str, folder: Path) -> None:
    style = str(folder / "style.safetensors:0.5")
    with VideoEngine.from_pretrained(model) as alone:
        expected = [alone.generate(request(*each)).latents for each in ([style], [])]
    # The ranks start with the LoRA of the first request.
    with VideoEngine(EngineConfig(model=model, devices=2)) as engine:
        videos = [engine.generate(request(*each)) for each in ([style], [], [style], [style])]
    exchanges = [LORAS_STAGE in video.metadata.seconds for video in videos]
    assert exchanges == [False, True, True, False]
    for video, alike in zip(videos, (*expected, expected[0], expected[0]), strict=True):
        np.testing.assert_allclose(video.latents, alike, rtol=0, atol=1e-4)
    for video in videos[2:]:
        np.testing.assert_array_equal(video.latents, videos[0].latents)
    assert abs(expected[0] - expected[1]).max() > 1e-2
    assert videos[1].metadata.ranks[0].loras == []


def test_generate_records_its_loras_and_renders_them_again(
    generate: Command, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder)
    loras = ("--lora", "style.safetensors", "motion.safetensors:-0.25@transformer")
    out, again = tmp_path / "out.npy", tmp_path / "again.npy"
    code, _, stderr = generate("a cat", *loras, *SMALL, "-o", out)
    assert code == 0, stderr
    metadata = json.loads(out.with_name("out.npy.json").read_text())
    assert metadata["request"]["lora"] == [
        f"{folder}/style.safetensors:1.0",
        f"{folder}/motion.safetensors:-0.25@transformer",
    ]
    assert LORAS_STAGE not in metadata["seconds"]
    style, motion = metadata["loras"]
    assert [style["sha256"], motion["sha256"]] == metadata["request"]["lora_sha256"]
    assert (style["scale"], motion["scale"]) == (1.0, -0.25)
    assert (style["tensors"], motion["tensors"]) == ({"transformer": 2}, {"transformer": 1})
    assert "left" not in style
    assert "loras" not in metadata["ranks"][0]
    code, _, stderr = generate("--config", f"{out}.json", "-o", again)
    assert code == 0, stderr
    assert again.read_bytes() == out.read_bytes()
    code, _, _ = generate("--config", f"{out}.json", *loras[:2], "-o", again, "--overwrite")
    assert code == 0  # another LoRA discards the recorded digests


def test_refused_before_anything_is_loaded(
    generate: Command, model: str, folder: Path, tmp_path: Path
) -> None:
    other = save_lora(tmp_path / "other.safetensors", model, ("proj_out",), 3)
    strange = tmp_path / "strange.safetensors"
    strange.write_bytes(
        other.read_bytes().replace(b"transformer.proj_out", b"transformer.prxj_out")
    )
    style = folder / "style.safetensors"
    (tmp_path / "link.safetensors").symlink_to(style)
    inside = ("--lora-folder", folder)
    for words, arguments in (
        ("no_such.safetensors", ("--lora", tmp_path / "no_such.safetensors")),
        ("damaged.safetensors", ("--lora", folder / "damaged.safetensors")),
        ("names no transformer of the model", ("--lora", f"{style}@transformer_2")),
        ("transformer.prxj_out", ("--lora", strange)),
        ("is a path: name a file of the folder", ("--lora", style, *inside)),
        ("is a path", ("--lora", "../style.safetensors", *inside)),
        ("is a path", ("--lora", ".style.safetensors", *inside)),
        ("is no folder", ("--lora", "style.safetensors", "--lora-folder", tmp_path / "none")),
        ("scale|last colon", ("--lora", f"{style}:much")),
    ):
        code, stdout, stderr = generate("a", *arguments, *SMALL, "-o", tmp_path / "out.npy")
        assert code == 2, (words, stderr)
        assert any(each in stderr for each in words.split("|")), stderr
        assert len(stderr.strip().splitlines()) == 1
        assert stdout == ""
    assert not (tmp_path / "out.npy").exists()


def test_by_name_in_a_folder_and_in_part(
    model: str, folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    renamed = (folder / "motion.safetensors").read_bytes().replace(b".0.attn.to_q", b".9.attn.to_q")
    both = save_lora(tmp_path / "both.safetensors", model, LAYERS, 1)
    halves = both.read_bytes().replace(
        b".transformer_blocks.0.attn.to_q", b".transformer_blocks.9.attn.to_q"
    )
    both.write_bytes(halves)
    (tmp_path / "foreign.safetensors").write_bytes(renamed)
    with VideoEngine.from_pretrained(model, lora_folder=tmp_path) as engine:
        with pytest.raises(RequestError, match="do not fit") as refused:
            engine.resolve(request("both.safetensors"))
        assert str(tmp_path) not in str(refused.value)
        video = engine.generate(request("both.safetensors", lora_partial=True))
        with pytest.raises(RequestError):
            engine.resolve(request("foreign.safetensors", lora_partial=True))
    (described,) = video.metadata.as_json()["loras"]
    assert described["file"] == "both.safetensors"
    assert len(described["left"]) == 3
    assert described["tensors"] == {"transformer": 1}
    assert "3 of its tensors fit nothing" in caplog.text


def test_identity_sees_content_and_scale_not_paths(
    model: str, folder: Path, tmp_path: Path
) -> None:
    copy = tmp_path / "copy.safetensors"
    copy.write_bytes((folder / "style.safetensors").read_bytes())
    engine = VideoEngine(EngineConfig(model=model))
    style, motion = (str(folder / f"{each}.safetensors") for each in ("style", "motion"))
    one, moved, scaled, other, none = (
        engine.identity_of(engine.resolve(request(*each)))
        for each in ([style], [f"{copy}:1"], [f"{copy}:0.5"], [motion], [])
    )
    assert one.difference_from(moved) == ""
    assert "lora" in one.difference_from(scaled)
    assert "lora_sha256" in one.difference_from(other)
    assert "lora" in one.difference_from(none)
    save_lora(copy, model, LAYERS, 9)
    with pytest.raises(RequestError, match="lora_sha256 is"):
        engine.resolve(moved.request)


def test_batch_renders_jobs_of_one_lora_together(
    run_command: Command, model: str, folder: Path, tmp_path: Path
) -> None:
    shots, out = tmp_path / "shots.yaml", tmp_path / "out"
    style = tmp_path / "style.safetensors"
    style.write_bytes((folder / "style.safetensors").read_bytes())
    rows = [("one", "style.safetensors"), ("two", ""), ("three", "style.safetensors"), ("four", "")]
    lines = [f"  - {{id: {name}, prompt: a cat, seed: 1, lora: '{lora}'}}" for name, lora in rows]
    shots.write_text("\n".join(["shots:", *lines]).replace(", lora: ''", ""))
    batch = ("batch", shots, "-o", out, "--model", model, *SMALL)
    code, _, stderr = run_command(*batch)
    assert code == 0, stderr

    def metadata(name: str) -> dict[str, Any]:
        return dict(json.loads((out / f"{name}.mp4.json").read_text()))

    order = sorted(
        ("one", "two", "three", "four"), key=lambda n: metadata(n)["batch"]["started_at"]
    )
    assert order == ["one", "three", "two", "four"]
    exchanges = [name for name in order if LORAS_STAGE in metadata(name)["seconds"]]
    assert exchanges == ["one", "two"]  # the ranks of a batch start without LoRAs
    assert (out / "two.mp4").read_bytes() == (out / "four.mp4").read_bytes()
    assert (out / "one.mp4").read_bytes() == (out / "three.mp4").read_bytes()
    save_lora(style, model, LAYERS, 7)
    code, _, stderr = run_command(*batch)
    assert code == 0
    assert "2 changed" in stderr
