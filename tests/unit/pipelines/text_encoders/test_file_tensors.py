"""Stand-ins for the tensors of files, as transformers handles them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from longtake.errors import ModelError
from longtake.pipelines.loading.tensor_source import SafetensorsSource
from longtake.pipelines.text_encoders.file_tensors import FileTensor, source_name, stand_ins


def stand_in() -> FileTensor:
    return FileTensor.of("a.weight", (4, 3), torch.float32)


UNCHANGED: dict[str, Callable[[FileTensor], Any]] = {
    "to a device": lambda x: x.to("cpu"),
    "to a dtype": lambda x: x.to(torch.bfloat16).to(torch.float32),
    "to both": lambda x: x.to(device=torch.device("cpu"), dtype=torch.float32),
    "all of it": lambda x: x[...],
    "contiguous": lambda x: x.contiguous(),
    "a parameter": lambda x: nn.Parameter(x, requires_grad=False),
    "detached": lambda x: nn.Parameter(x).detach(),
}


@pytest.mark.parametrize("case", UNCHANGED)
def test_what_only_moves_or_converts_keeps_its_name(case: str) -> None:
    result = UNCHANGED[case](stand_in())
    assert isinstance(result, FileTensor)
    assert result.source_name == "a.weight"
    assert (result.shape, result.dtype, result.is_meta) == ((4, 3), torch.float32, True)


def test_conversions_show_in_the_dtype() -> None:
    for converted in (stand_in().to(torch.bfloat16), stand_in().to("cpu", torch.bfloat16)):
        assert (converted.dtype, converted.is_meta) == (torch.bfloat16, True)


COMPUTED: dict[str, Callable[[FileTensor], Any]] = {
    "transposed": lambda x: x.t(),
    "some rows": lambda x: x[:2],
    "rows in another order": lambda x: x[torch.tensor([3, 2, 1, 0])],
    "concatenated": lambda x: torch.cat([x, x]),
    "scaled": lambda x: 2 * x,
    "reshaped": lambda x: x.reshape(3, 4),
    "no stand-in": lambda x: torch.zeros(4, 3),
}


@pytest.mark.parametrize("case", COMPUTED)
def test_what_is_computed_has_no_name(tmp_path: Path, case: str) -> None:
    save_file({"a.weight": torch.zeros(4, 3)}, tmp_path / "model.safetensors")
    source = SafetensorsSource([tmp_path / "model.safetensors"])
    assert source_name("b", stand_in(), source) == "a.weight"
    with pytest.raises(
        ModelError, match=f"^b is computed from several .* of {tmp_path}, "
    ) as caught:
        source_name("b", COMPUTED[case](stand_in()), source)
    assert str(caught.value).isprintable()


def test_stand_ins_of_files(tmp_path: Path) -> None:
    tensors = {"a": torch.zeros(2, 3).half(), "b": torch.zeros(()), "c": torch.arange(5)}
    save_file(tensors, tmp_path / "model.safetensors")
    found = stand_ins(SafetensorsSource([tmp_path / "model.safetensors"]))
    assert {name: each.shape for name, each in found.items()} == {
        name: each.shape for name, each in tensors.items()
    }
    assert [name for name, each in found.items() if not each.is_floating_point()] == ["c"]
