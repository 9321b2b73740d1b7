"""Non-finite latents are refused, whether input or denoised."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import save_file

from longtake.engine.media.latents import checked_latents, read_latents
from longtake.errors import EngineError, RequestError
from longtake.parallel import ParallelDims
from longtake.pipelines import registry
from longtake.pipelines.loading.checkpoint import Checkpoint
from longtake.pipelines.loading.plan import LoadPlan
from tests.rendering import ALONE, render, request

NOT_FINITE = [math.nan, math.inf, -math.inf]


@pytest.mark.parametrize("value", NOT_FINITE)
def test_input_latents(tmp_path: Path, value: float) -> None:
    """A single value suffices, in an array or a file; large finite values pass."""
    latents = np.full((1, 4, 2, 4, 6), 3e38, np.float32)
    assert checked_latents(latents).shape == latents.shape
    latents[0, 3, 1, 3, 5] = value
    path = tmp_path / "latents.safetensors"
    save_file({"latents": latents}, path)
    with pytest.raises(RequestError, match="^latents must be finite, and some of these are not"):
        checked_latents(latents)
    with pytest.raises(RequestError, match="latents must be finite, and some of these are not"):
        read_latents(path)


@pytest.mark.parametrize("value", NOT_FINITE)
def test_denoised_latents(model: str, value: float) -> None:
    pipeline = registry.load(Checkpoint.open(model), ALONE, LoadPlan.resident(torch.float32))
    with torch.no_grad():
        next(iter(pipeline.denoiser.chains[0][1].parameters())).fill_(value)
    with pytest.raises(EngineError, match="latents are not finite after denoising: the weights"):
        render(pipeline, request(), ParallelDims(), ALONE)
