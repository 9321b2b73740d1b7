"""Tiled decoding on a GPU is close to diffusers' for any number of tiles at once."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from longtake.configs.request import ResolvedDecode
from longtake.parallel import World
from longtake.pipelines.codec import decode
from longtake.pipelines.codec.decode import TileRun, run_tiles
from longtake.pipelines.codec.memory import peak_bytes
from longtake.pipelines.loading.checkpoint import Checkpoint
from longtake.pipelines.models.hunyuan_video.codec.autoencoder import (
    HunyuanVideoCodec,
    HunyuanVideoDecoder,
)
from tests import tiny

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")

REQUEST = ResolvedDecode(
    decode="tiled",
    decode_tile_size=(8, 64, 64),
    decode_tile_stride=(4, 48, 48),
    fps=8,
    height=160,
    width=224,
    num_frames=33,
)
TOLERANCES = {torch.float32: 1e-3, torch.float16: 2e-2}


@pytest.mark.parametrize("dtype", TOLERANCES)
@pytest.mark.parametrize("tiles_at_once", [1, 3])
@torch.no_grad()
def test_tiles_match_diffusers(
    monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype, tiles_at_once: int
) -> None:
    # In TF32, torch's default, batched convolutions differ by 1e-3.
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    device = torch.device("cuda")
    vae = tiny.autoencoder(block_out_channels=(32, 32, 64, 64)).to(device, dtype)
    vae.enable_tiling(64, 64, 8, 48, 48, 4)
    latents = torch.randn(1, 4, 9, 20, 28, device=device)
    parts: list[torch.Tensor] = []

    def take(video: int, values: torch.Tensor) -> bool:
        parts.append(values.clone())
        return True

    decoder = HunyuanVideoDecoder(vae, REQUEST)
    run_tiles(TileRun(decoder, latents, World(device), tiles_at_once=tiles_at_once), take)
    values = torch.cat(parts, dim=1)
    expected = vae.decode(latents.to(dtype) / vae.config.scaling_factor).sample[0].cpu()
    assert values.device.type == "cpu"
    assert (values - expected).abs().max() < TOLERANCES[dtype] * expected.abs().max()


@torch.no_grad()
def test_free_memory_limits_the_tiles_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """The predicted memory of a tile is within 50 % of the measured memory."""
    device = torch.device("cuda")
    vae = tiny.autoencoder(block_out_channels=(32, 32, 64, 64)).to(device)
    decoder = HunyuanVideoDecoder(vae, REQUEST)
    latents = torch.randn(1, 4, 3, 8, 8, device=device)
    predicted = peak_bytes(decoder.run, tuple(latents.shape), device)
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    decoder.run(latents)
    measured = torch.cuda.max_memory_allocated() - before
    assert predicted / 1.5 < measured < 1.5 * predicted
    for free, expected in ((predicted, 1), (3 * predicted, 2), (100 * predicted, 4)):
        monkeypatch.setattr(decode, "free_bytes", lambda device, free=free: free)
        assert decode._tiles_that_fit(decoder, latents) == expected


def test_an_autoencoder_leaves_the_gpu_while_it_rests() -> None:
    device = torch.device("cuda")
    codec = HunyuanVideoCodec(Checkpoint.open("demo"), World(device), torch.float32)
    vae: Any = codec.modules[0]
    num_bytes = sum(weights.nbytes for weights in vae.parameters())
    latents = torch.randn(1, vae.config.latent_channels, 3, 8, 8, device=device)
    with torch.no_grad():
        expected = vae.decode(latents).sample.cpu()
        loaded = torch.cuda.memory_allocated()
        codec.rest_on_host()
        assert loaded - torch.cuda.memory_allocated() >= num_bytes
        with codec.at_work():
            assert torch.equal(vae.decode(latents).sample.cpu(), expected)
    assert all(weights.device.type == "cpu" for weights in vae.parameters())
