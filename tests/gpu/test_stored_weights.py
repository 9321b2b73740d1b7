"""Weights in fewer bits on a GPU: the codes of the CPU, decoded alike, wherever they live."""

from __future__ import annotations

from pathlib import Path
from typing import get_args

import pytest
import torch

from longtake.configs.fields.weights import StorageDtype, WeightPlace
from longtake.parallel import World
from longtake.pipelines.quantization.codes import decode, encode
from longtake.pipelines.quantization.sizes import stored_bytes
from tests import tiny
from tests.rendering import ONE_RANK, Array, load_on, render, request

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")

STORAGES = pytest.mark.parametrize("storage", get_args(StorageDtype))


@STORAGES
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_decoded_weights_are_those_of_the_cpu(storage: StorageDtype, dtype: torch.dtype) -> None:
    weight = torch.randn(64, 200, generator=torch.Generator().manual_seed(0))
    codes, scales = encode(weight, storage)
    expected = decode(codes, scales, 200, storage, dtype)
    found = decode(codes.cuda(), scales.cuda(), 200, storage, dtype)
    assert torch.equal(found.cpu(), expected)


@STORAGES
def test_memory_of_decoding(storage: StorageDtype) -> None:
    rows, columns = 4096, 4096
    codes, scales = (each.cuda() for each in encode(torch.randn(rows, columns), storage))
    assert codes.nbytes + scales.nbytes == stored_bytes(rows, columns, storage)
    decode(codes, scales, columns, storage, torch.bfloat16)  # allocates nf4's table
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    decode(codes, scales, columns, storage, torch.bfloat16)
    taken = torch.cuda.max_memory_allocated() - before
    values = rows * columns
    assert taken == pytest.approx((4 if storage == "nf4" else 2) * values, rel=0.05)


@STORAGES
def test_latents_are_those_of_resident_weights(tmp_path: Path, storage: StorageDtype) -> None:
    folder, resolved = str(tiny.save(tmp_path / "tiny")), request(num_inference_steps=3)
    gpu = World(torch.device("cuda", torch.cuda.current_device()))

    def latents(place: WeightPlace) -> Array:
        pipeline = load_on(gpu, folder, "bfloat16", place, storage)
        array: Array = render(pipeline, resolved, ONE_RANK, gpu).numpy()
        return array

    expected = latents("resident")
    for place in ("streamed", "disk"):
        assert (latents(place) == expected).all()
