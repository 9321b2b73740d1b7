"""A toy model, its family, and its transformer in the layout of another trainer."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from importlib.metadata import EntryPoint, EntryPoints, entry_points
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from longtake.configs import families
from tests import tiny_toy

PACKAGE = Path(__file__).parents[3] / "families" / "toy"

Tensors = dict[str, torch.Tensor]


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The folder of a tiny toy model, whose family is installed."""
    own = EntryPoint("toy", "longtake_toy:FAMILY", families.GROUP)
    installed = EntryPoints([*entry_points(group=families.GROUP), own])
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(PACKAGE)
        patch.setattr(families, "entry_points", lambda group: installed)
        families.installed_families.cache_clear()
        yield tiny_toy.save(tmp_path_factory.mktemp("models") / "toy")
    families.installed_families.cache_clear()
    for name in [name for name in sys.modules if name.startswith("longtake_toy")]:
        del sys.modules[name]


@pytest.fixture(scope="module")
def whole(toy: Path) -> Tensors:
    """The tensors of its transformer."""
    return load_file(toy / "transformer" / "model.safetensors")


@pytest.fixture(scope="module")
def elsewhere(whole: Tensors) -> Tensors:
    """The same values under the names of another trainer."""
    renamed = dict(whole)
    for index in range(2):
        for kind in ("weight", "bias"):
            fused = renamed.pop(f"blocks.{index}.to_qkv.{kind}")
            for name, rows in zip("qkv", fused.chunk(3), strict=True):
                renamed[f"blocks.{index}.{name}.{kind}"] = rows.contiguous()
            outs = [renamed.pop(f"blocks.{index}.{name}.{kind}") for name in ("to_out", "text_out")]
            renamed[f"blocks.{index}.outs.{kind}"] = torch.cat(outs)
    return renamed


@pytest.fixture
def part(elsewhere: Tensors, tmp_path: Path) -> Path:
    """A file of them."""
    path = tmp_path / "other.safetensors"
    save_file(elsewhere, path)
    return path
