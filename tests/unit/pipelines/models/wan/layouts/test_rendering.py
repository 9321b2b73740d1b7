"""A video from a folder in Wan's own layout is that of diffusers' folder, bit for bit."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from longtake.pipelines import registry
from longtake.pipelines.loading.checkpoint import Checkpoint
from longtake.pipelines.loading.plan import LoadPlan
from longtake.pipelines.models.wan.layouts.folders import FOLDERS
from tests import foreign_wan
from tests.rendering import ALONE, ONE_RANK, decode, render
from tests.wan_rendering import longtake_render, wan_request

PICTURES = {"wan21-flf2v": ("image", "last_image"), "wan22-t2v": (), "wan22-ti2v": ()}


@pytest.mark.parametrize("kind", PICTURES)
def test_every_component_from_an_own_folder(
    wan: Callable[[str], str], tmp_path: Path, kind: str
) -> None:
    """The model's folder holds no weights, so that all of them come from the other one."""
    folder = wan(kind)
    bare = shutil.copytree(folder, tmp_path / kind, ignore=shutil.ignore_patterns("*.safetensors"))
    parts = FOLDERS[0].find(foreign_wan.save_own_folder(folder, tmp_path / "own"))
    assert parts.keys() == foreign_wan.own_components(folder).keys()
    request = wan_request(folder, PICTURES[kind], num_inference_steps=2)
    latents, frames = longtake_render(folder, request)
    checkpoint = Checkpoint.open(str(bare), parts=parts)
    pipeline = registry.load(checkpoint, ALONE, LoadPlan.resident(torch.float32))
    found = render(pipeline, request, ONE_RANK, ALONE)
    assert np.array_equal(found.numpy(), latents)
    assert np.array_equal(decode(pipeline, found, request, ALONE), frames)
