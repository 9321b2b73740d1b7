"""Components from other files, by every command: the same video, or a refusal in one line."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from longtake import VideoEngine
from longtake.cli import main as cli
from longtake.configs.engine import PARTS, EngineConfig
from longtake.configs.models import bundled
from longtake.engine.resolve.outline import EngineOutline
from longtake.engine.worker import _check_parts
from longtake.errors import ModelError
from longtake.pipelines.loading.checkpoint import Checkpoint
from tests import foreign_hunyuan

WRITERS: dict[str, Callable[..., Any]] = {
    "transformer": foreign_hunyuan.comfyui_transformer,
    "vae": foreign_hunyuan.comfyui_vae,
    "text_encoder": foreign_hunyuan.causal_lm,
    "text_encoder_2": foreign_hunyuan.clip_model,
}
SHOT = ("a cat", "--seed", 7, "--num-inference-steps", 2)


@pytest.fixture(scope="module")
def parts(model: str, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Every component of the tiny model in a file of another layout, of an odd name."""
    folder = tmp_path_factory.mktemp("parts")
    return {
        name: foreign_hunyuan.write(
            foreign_hunyuan.component(Path(model), name),
            folder / f"{name} %s {{x}}.safetensors",
            as_,
        )
        for name, as_ in WRITERS.items()
    }


@pytest.fixture(scope="module")
def hollow(model: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model without its weights."""
    folder = Path(shutil.copytree(model, tmp_path_factory.mktemp("models") / "hollow"))
    for file in folder.rglob("*.safetensors"):
        file.unlink()
    return folder


@pytest.fixture
def at(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder to work in."""
    monkeypatch.chdir(tmp_path)
    yield tmp_path


def flags(parts: dict[str, Path]) -> list[object]:
    return [
        word
        for name, path in parts.items()
        for word in (f"--{name.replace('_', '-')}", os.path.relpath(path))
    ]


def test_every_component_from_elsewhere(
    longtake: Any, model: str, hollow: Path, parts: dict[str, Path], at: Path
) -> None:
    """The same bytes on one rank, near ones on two; the record renders it again from anywhere, and
    its latents are decoded with the same VAE."""
    here = ("--model", hollow, *flags(parts))
    assert longtake("generate", *SHOT, "-o", "base.npy")[0] == 0
    assert longtake("generate", *SHOT, *here, "-o", "one.npy")[0] == 0
    engine = json.loads(Path("one.npy.json").read_text())["engine"]
    assert all(os.path.isabs(engine[name]) for name in parts)
    assert {name: Path(engine[name]).resolve() for name in parts} == parts
    (at / "elsewhere").mkdir()
    os.chdir("elsewhere")
    again = ("generate", "--config", "../one.npy.json")
    code, _, refused = longtake(*again, "--model", hollow, "-o", "../x.npy")
    assert code == 2 and "has no weights" in refused  # another model discards the parts
    split = ("--devices", "2", "--weights", "split")
    assert cli.main([*again, *split, "-o", "../two.safetensors"]) == 0
    assert cli.main(["decode", "../two.safetensors", "-o", "../two.npy"]) == 0
    base, one, two = (np.load(at / f"{name}.npy") for name in ("base", "one", "two"))
    assert np.array_equal(one, base)
    np.testing.assert_allclose(two, base, rtol=0, atol=1e-4)


def test_a_publishers_folder_is_the_model(longtake: Any, at: Path) -> None:
    """tencent's own folder, of which nothing is in diffusers' layout, offline."""
    foreign_hunyuan.save_tencents_folder(bundled()["demo"], at / "ckpts")
    small = (*SHOT, "--num-frames", 5, "--height", 64, "--width", 64)
    for model in ("demo", "ckpts"):
        assert longtake("generate", *small, "--model", model, "-o", f"{model}.npy")[0] == 0
    assert np.array_equal(np.load("ckpts.npy"), np.load("demo.npy"))


def test_refusals_are_one_line_before_anything_is_loaded(
    longtake: Any, model: str, parts: dict[str, Path], at: Path
) -> None:
    wrong = ("--transformer", parts["vae"])
    for words, reason in (
        (("generate", "x", *wrong), "holds HunyuanVideo's vae"),
        (("generate", "x", "--image-encoder", parts["vae"]), "stands in for nothing"),
        (("generate", "x", "--vae", "no.safetensors"), "is no file and no folder"),
        (("plan", *wrong), "holds HunyuanVideo's vae"),
        (("verify", "x", *wrong), "holds HunyuanVideo's vae"),
        (("generate", "x", "--model", parts["transformer"]), "a transformer that no preset has"),
    ):
        code, out, err = longtake(*words)
        assert (code, out) == (2, "") and reason in err and err.count("\n") == 1, (words, err)
    assert cli.main(["plan", "--what-fits", *map(str, wrong)]) == 2


def test_a_plan_counts_the_part(longtake: Any, model: str, tmp_path: Path) -> None:
    """A transformer of fewer blocks takes less memory and time."""
    tensors = foreign_hunyuan.component(Path(model), "transformer")
    fewer = {
        name: each for name, each in tensors.items() if "single_transformer_blocks" not in name
    }
    single = {name: each for name, each in tensors.items() if "single_transformer_blocks.0" in name}
    writer = foreign_hunyuan.tencent_transformer
    path = foreign_hunyuan.write(fewer | single, tmp_path / "fewer.safetensors", writer)
    plan = ("plan", "--gpu", "a100-80g", "--json")
    whole, less = (
        json.loads(longtake(*plan, *more)[1])["best"] for more in ((), ("--transformer", path))
    )
    for key in ("memory_bytes_per_rank", "seconds_per_step"):
        assert less[key] < whole[key]


def test_two_engines_differ_by_their_parts(model: str, parts: dict[str, Path]) -> None:
    base, other, third = (
        EngineOutline(EngineConfig(model=model, **own))
        for own in ({}, {"vae": parts["vae"]}, {"vae": parts["vae"], "autoencoder_only": True})
    )
    assert base.identity_part() != other.identity_part() == third.identity_part()
    unused = EngineConfig(model=model, transformer=Path("nowhere"), autoencoder_only=True)
    assert EngineOutline(unused).identity_part() == base.identity_part()
    assert set(WRITERS) < set(PARTS)


def test_a_file_that_changed_since_the_engine_was_made(
    model: str, parts: dict[str, Path], tmp_path: Path
) -> None:
    vae = Path(shutil.copy(parts["vae"], tmp_path / "vae.safetensors"))
    engine = VideoEngine(EngineConfig(model=model, vae=vae))
    os.utime(vae, ns=(0, 0))
    with pytest.raises(ModelError, match="was changed while it was in use: start again"):
        engine.generate("a cat")


def test_ranks_take_the_same_files(model: str, parts: dict[str, Path]) -> None:
    """Under torchrun each rank has its own command line, and its host its own files."""

    class Others:
        def gather_json(self, own: Any) -> list[Any]:
            return [own, own, {**own, "vae": "another digest"}]

    checkpoint = Checkpoint.open(model, parts={"vae": parts["vae"]})
    with pytest.raises(ModelError, match="vae is not the same on rank 0 and on rank 2"):
        _check_parts(Others(), checkpoint)  # type: ignore[arg-type]
