"""Components of the demo models from files in other layouts have the values of their own files."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from longtake.configs.models import bundled
from longtake.pipelines import registry
from longtake.pipelines.loading.checkpoint import Checkpoint
from tests import foreign_hunyuan as foreign

WRITERS: dict[tuple[str, str], list[tuple[foreign.Writer, str]]] = {
    ("demo", "transformer"): [
        (foreign.tencent_transformer, ""),
        (foreign.tencent_transformer, "module."),
        (foreign.comfyui_transformer, "model.diffusion_model."),
        (foreign.comfyui_transformer, "model.model."),
        (foreign.later_comfyui_transformer, "diffusion_model."),
        (dict, "transformer."),
    ],
    ("demo-i2v", "transformer"): [(foreign.tencent_transformer, "")],
    ("demo", "vae"): [(dict, "vae."), (foreign.comfyui_vae, ""), (foreign.comfyui_vae, "vae.")],
    ("demo", "text_encoder"): [
        (foreign.causal_lm, ""),
        (foreign.causal_lm, "text_encoders.llama.transformer."),
        (foreign.llama_cpp, ""),
    ],
    ("demo-i2v", "text_encoder"): [
        (foreign.earlier_llava, ""),
        (foreign.llava_of_modules, ""),
        (foreign.comfyui_llava, ""),
    ],
    ("demo", "text_encoder_2"): [
        (foreign.clip_model, ""),
        (foreign.clip_model, "text_encoders.clip_l.transformer."),
    ],
}


@pytest.fixture(params=WRITERS, ids="-".join)
def written(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[str, str, Path]]:
    """A model, a component, and a file of it in each of the other layouts."""
    model, component = request.param
    own = foreign.component(bundled()[model], component)
    return (
        (model, component, foreign.write(own, tmp_path / f"{index}.safetensors", writer, prefix))
        for index, (writer, prefix) in enumerate(WRITERS[request.param])
    )


def test_values(written: Iterator[tuple[str, str, Path]]) -> None:
    for model, component, path in written:
        checkpoint = Checkpoint.open(model, parts={component: path})
        registry.inspect(checkpoint)  # names and shapes are those of the configuration
        source, own = checkpoint.source(component), Checkpoint.open(model).source(component)
        expected = {_module_name(component, name): name for name in own.tensors}
        assert source.tensors.keys() == expected.keys()
        for name, own_name in expected.items():
            whole = own.read(own_name)
            assert torch.equal(source.read(name), whole), name
            rows = slice(len(whole) // 4, len(whole) * 3 // 4)  # of both halves of a swapped one
            assert torch.equal(source.read(name, rows), whole[rows]), name


def _module_name(component: str, name: str) -> str:
    """Name that every version of transformers reads, of a tensor as version 5 saves it."""
    if component == "text_encoder_2":
        return f"text_model.{name}"
    return name.replace("vision_tower.", "vision_tower.vision_model.")
