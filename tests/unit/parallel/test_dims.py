"""Degrees of layouts, which need no process group."""

from __future__ import annotations

import pytest
import torch.distributed as dist

from longtake.errors import LayoutError, LongtakeError
from longtake.parallel import ParallelDims


def test_world_size_is_the_product_of_the_degrees() -> None:
    dims = ParallelDims(cfg_degree=2, ring_degree=3, ulysses_degree=5)
    assert (dims.world_size, dims.sequence_degree) == (30, 15)
    assert ParallelDims().world_size == 1


@pytest.mark.parametrize("axis", ["cfg", "ring", "ulysses"])
@pytest.mark.parametrize("degree", [0, -1, 2.0, "2", None, True])
def test_a_degree_is_a_whole_number_of_at_least_one(axis: str, degree: object) -> None:
    with pytest.raises(LayoutError) as caught:
        ParallelDims(**{f"{axis}_degree": degree})  # type: ignore[arg-type]
    assert str(caught.value).startswith(f"{axis}_degree={degree!r} must be a whole number")
    assert isinstance(caught.value, LongtakeError) and isinstance(caught.value, ValueError)


def test_a_mesh_needs_a_process_group() -> None:
    assert not dist.is_initialized()
    with pytest.raises(LayoutError, match="init_process_group first"):
        ParallelDims(ulysses_degree=2).build_mesh("cpu")
    assert not dist.is_initialized()


def test_dims_are_hashable_and_frozen() -> None:
    assert ParallelDims(ring_degree=2) == ParallelDims(ring_degree=2)
    assert len({ParallelDims(ring_degree=2), ParallelDims(ring_degree=2)}) == 1
    with pytest.raises(AttributeError):
        ParallelDims().ring_degree = 2  # type: ignore[misc]


@pytest.mark.parametrize(
    ("text", "degrees", "name"),
    [
        ("2x4", (1, 2, 4), "1x2x4"),
        ("1x1", (1, 1, 1), "1x1x1"),
        ("2x3x5", (2, 3, 5), "2x3x5"),
        ("10x1x128", (10, 1, 128), "10x1x128"),
    ],
)
def test_parse_reads_what_name_writes(text: str, degrees: tuple[int, int, int], name: str) -> None:
    dims = ParallelDims.parse(text)
    assert (dims.degrees, dims.name) == (degrees, name)
    assert ParallelDims.parse(dims.name) == dims


@pytest.mark.parametrize(
    "text", ["", "4", "x", "2x", "0x4", "02x4", "-1x4", "2X4", "2 x 4", "2x4\n", "1x2x3x4", "٢x2"]
)
def test_parse_refuses_any_other_text(text: str) -> None:
    with pytest.raises(LayoutError) as caught:
        ParallelDims.parse(text)
    assert str(caught.value).startswith(f"layout={text!r} must be RINGxULYSSES or CFGxRING")
    assert str(caught.value).endswith("try 1x2")
