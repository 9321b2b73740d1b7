"""Layers whose weights are stored in fewer bits, and which of a denoiser's layers they replace."""

from __future__ import annotations

from typing import get_args

import pytest
import torch
from torch import nn

from longtake.configs.fields.weights import StorageDtype
from longtake.errors import ModelError
from longtake.pipelines.models.hunyuan_video.transformer.denoiser import HunyuanVideoDenoiser
from longtake.pipelines.quantization.codes import decode, encode
from longtake.pipelines.quantization.linear import StoredLinear, stored_dtypes, stored_linears
from longtake.pipelines.quantization.replacement import check_stored, store_in_fewer_bits
from tests import tiny
from tests.rendering import load_pipeline

STORAGES = pytest.mark.parametrize("storage", get_args(StorageDtype))


def filled(linear: nn.Linear, storage: StorageDtype) -> tuple[StoredLinear, torch.Tensor]:
    """A layer that stores another one's weight, and the weight that it decodes."""
    with torch.device("meta"):
        stored = StoredLinear(nn.Linear(linear.in_features, linear.out_features), storage)
    codes, scales = encode(linear.weight, storage)
    stored.weight = nn.Parameter(codes, requires_grad=False)
    stored.weight_scale = nn.Parameter(scales, requires_grad=False)
    stored.bias = linear.bias
    return stored, decode(codes, scales, linear.in_features, storage, linear.weight.dtype)


@STORAGES
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("bias", [True, False])
@torch.no_grad()
def test_it_computes_with_the_decoded_weight(
    storage: StorageDtype, dtype: torch.dtype, bias: bool
) -> None:
    torch.manual_seed(0)
    linear = nn.Linear(70, 6, bias=bias, dtype=dtype)
    stored, weight = filled(linear, storage)
    linear.weight.copy_(weight)
    for shape in ((2, 3, 70), (1, 0, 70), (70,)):
        values = torch.randn(shape, dtype=dtype)
        torch.testing.assert_close(stored(values), linear(values), rtol=0, atol=1e-6)
    assert repr(stored) == f"StoredLinear(70, 6, storage={storage})"


def test_all_linear_layers_of_blocks_are_replaced_and_no_others() -> None:
    with torch.device("meta"):
        denoiser = HunyuanVideoDenoiser(tiny.transformer())
    linears = {name for name, each in denoiser.named_modules() if type(each) is nn.Linear}
    check_stored(denoiser, None, "toy")
    with pytest.raises(ModelError, match="the model family toy stores linear of a block in the"):
        check_stored(denoiser, "float8", "toy")
    (blocks,) = denoiser.chains
    store_in_fewer_bits(blocks, "float8")
    check_stored(denoiser, "float8", "toy")
    stored = stored_linears(denoiser)
    of_blocks = ("transformer.transformer_blocks.", "transformer.single_transformer_blocks.")
    assert set(stored) == {name for name in linears if name.startswith(of_blocks)}
    assert any(name.endswith("norm1.linear") for name in stored)  # modulation
    left = {name for name, each in denoiser.named_modules() if type(each) is nn.Linear}
    assert left == linears - set(stored)
    assert any("token_refiner" in name for name in left)
    assert not any(
        each.requires_grad for name, each in denoiser.named_parameters() if "_scale" in name
    )
    assert len(stored_dtypes(denoiser)) == 2 * len(stored)


def test_a_layer_that_modules_share_stays_shared() -> None:
    with torch.device("meta"):
        inner = nn.Linear(3, 3)
        block = nn.ModuleDict({"a": nn.Sequential(inner), "b": nn.Sequential(inner)})
    store_in_fewer_bits([block], "int8")
    first, second = (block[name][0] for name in "ab")  # type: ignore[index]
    assert isinstance(first, StoredLinear) and first is second


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_dtype_of_compute_is_seen_as_before(model: str, dtype: str) -> None:
    denoiser = load_pipeline(model, False, dtype, "resident", "float8").denoiser
    assert denoiser.transformer.dtype == getattr(torch, dtype)
