"""A transformer whose weights stay in the blocks of its GGUF file: the latents of decoded ones."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import gguf
import numpy as np
import pytest

from longtake.configs.engine import EngineConfig
from longtake.configs.fields.weights import WeightPlace
from longtake.configs.request import VideoRequest
from longtake.engine.resolve.outline import EngineOutline
from longtake.errors import RequestError
from longtake.parallel import ParallelDims
from tests import checkpoint_files, foreign_hunyuan, foreign_wan
from tests.ranks import RankGroups
from tests.rendering import (
    denoiser_bytes,
    latents_on_one_rank,
    latents_on_ranks,
    request,
)

REQUEST = request(num_inference_steps=2)


@pytest.fixture(scope="module")
def blocks(model: str, tmp_path_factory: pytest.TempPathFactory) -> str:
    """A tiny HunyuanVideo whose transformer is a GGUF file under tencent's names alone."""
    folder = tmp_path_factory.mktemp("gguf") / "model"
    shutil.copytree(model, folder)
    own = foreign_hunyuan.component(folder, "transformer")
    for file in (folder / "transformer").glob("*.safetensors"):
        file.unlink()
    written = foreign_hunyuan.tencent_transformer(own)
    checkpoint_files.save_transformer_as_gguf(folder / "transformer.gguf", written)
    return str(folder)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_they_are_the_decoded_weights_to_the_bit(blocks: str, model: str, dtype: str) -> None:
    decoded = latents_on_one_rank(blocks, REQUEST, dtype)
    for place in ("resident", "streamed", "disk"):
        found = latents_on_one_rank(blocks, REQUEST, dtype, place, "gguf")
        np.testing.assert_array_equal(found, decoded)
    assert abs(decoded - latents_on_one_rank(model, REQUEST, dtype)).max() > 1e-3


def test_split_and_streamed_on_three_ranks(ranks: RankGroups, blocks: str) -> None:
    dims = ParallelDims(ulysses_degree=3)
    places: tuple[WeightPlace, ...] = ("resident", "split", "streamed")
    whole, split, streamed = (
        [
            latents
            for (latents,) in ranks.run(
                3, latents_on_ranks, blocks, [REQUEST], dims, "float32", place, "gguf"
            )
        ]
        for place in places
    )
    decoded = latents_on_one_rank(blocks, REQUEST)
    np.testing.assert_allclose(whole, [decoded] * 3, rtol=0, atol=1e-5)
    np.testing.assert_array_equal(split, whole)
    np.testing.assert_array_equal(streamed, whole)


def test_each_rank_holds_its_share(ranks: RankGroups, blocks: str) -> None:
    total = ranks.run(3, denoiser_bytes, blocks, "resident", "gguf")[0]
    held = ranks.run(3, denoiser_bytes, blocks, "split", "gguf")
    assert sum(held) == total and max(held) <= total / 3 * 1.03
    assert total < 0.55 * ranks.run(3, denoiser_bytes, blocks, "resident")[0]
    file = Path(blocks, "transformer.gguf").stat().st_size
    assert total == pytest.approx(file, rel=0.05)  # but for the header


def test_the_plan_knows_what_the_file_takes(blocks: str, model: str) -> None:
    file = Path(blocks, "transformer.gguf")
    config = EngineConfig(model=model, transformer=file, storage_dtype="gguf", device="cpu")
    outline = EngineOutline(config)
    spec = outline.spec
    values = spec.costs_of(REQUEST).transformer_parameters
    assert spec.gguf_value_bytes * values == pytest.approx(file.stat().st_size, rel=0.01)
    with pytest.raises(
        RequestError, match="lora=a.safetensors:0.5 with storage_dtype=gguf: a weight"
    ):
        outline.resolve(VideoRequest(prompt="a cat", lora=("a.safetensors:0.5",)))
    with pytest.raises(RequestError, match="storage_dtype=gguf: not every transformer of .*"):
        EngineOutline(config.model_copy(update={"transformer": None}))


def test_every_transformer_must_be_in_blocks(wan: Callable[[str], str], tmp_path: Path) -> None:
    """One expert of two, and values without blocks, are refused before anything is loaded."""
    model = wan("wan22-t2v")
    own = foreign_wan.own_transformer(foreign_wan.component(model, "transformer"))
    high, low, plain = (tmp_path / f"{name}.gguf" for name in ("high", "low", "plain"))
    saved = {name: (each.numpy(), "F32") for name, each in own.items()}
    checkpoint_files.save_gguf(plain, saved)
    for name in (name for name in own if name.endswith("ffn.2.weight")):
        values = gguf.quantize(saved[name][0], gguf.GGMLQuantizationType.Q8_0)
        saved[name] = (values, "Q8_0")
    checkpoint_files.save_gguf(high, saved)
    checkpoint_files.save_gguf(low, saved)
    config = EngineConfig(model=model, storage_dtype="gguf", device="cpu")
    EngineOutline(config.model_copy(update={"transformer": high, "transformer_2": low}))
    for parts in ({"transformer": high}, {"transformer": plain, "transformer_2": low}):
        with pytest.raises(RequestError, match="not every transformer of .* is in a GGUF file of"):
            EngineOutline(config.model_copy(update=parts))
