"""Loading Wan's transformers: tensors left out, float32 parts, and where experts rest."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from longtake.pipelines import registry
from longtake.pipelines.loading.checkpoint import Checkpoint
from longtake.pipelines.loading.plan import LoadPlan
from longtake.pipelines.models.wan.pipeline import WanVideo
from tests import tiny_wan
from tests.rendering import ALONE


def load(folder: str | Path, plan: LoadPlan | None = None) -> WanVideo:
    plan = plan or LoadPlan.resident(torch.float32)
    pipeline = registry.load(Checkpoint.open(str(folder)), ALONE, plan)
    assert isinstance(pipeline, WanVideo)
    return pipeline


def test_tensors_that_diffusers_ignores_are_not_loaded(
    wan: Callable[[str], str], tmp_path: Path
) -> None:
    """The released image-to-video models hold norms that no module has."""
    copied = Path(shutil.copytree(wan("wan21-i2v"), tmp_path / "model"))
    file = copied / "transformer/diffusion_pytorch_model.safetensors"
    tensors = load_file(file)
    added = tensors["blocks.0.attn2.norm_added_k.weight"].clone()
    save_file({**tensors, "blocks.0.attn2.norm_added_q.weight": added}, file, {"format": "pt"})
    ours, theirs = load(copied).denoiser.state_dict(), load(wan("wan21-i2v")).denoiser.state_dict()
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(tensor, theirs[name]) for name, tensor in ours.items())


def test_weights_and_dtypes_are_those_of_diffusers(wan: Callable[[str], str]) -> None:
    pipeline = load(wan("wan22-t2v"), LoadPlan.resident(torch.bfloat16))
    for name in ("transformer", "transformer_2"):
        model = tiny_wan.WanTransformer3DModel.from_pretrained(
            wan("wan22-t2v"), subfolder=name, torch_dtype=torch.bfloat16
        )
        parameters = pipeline.denoiser.expert(name).transformer.named_parameters()
        own = {name.replace(".inner", ""): each for name, each in parameters}  # of a wrapper
        for parameter, expected in model.named_parameters():
            assert own[parameter].dtype == expected.dtype
            assert torch.equal(own[parameter], expected)
