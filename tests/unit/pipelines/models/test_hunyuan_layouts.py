"""HunyuanVideo's layouts against diffusers' own converter, transformers' loading, and by hand."""

from __future__ import annotations

import itertools
import json
import tracemalloc
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from diffusers import (
    AutoencoderKLHunyuanVideo,
    AutoencoderKLHunyuanVideo15,
    AutoencoderKLWan,
    FluxTransformer2DModel,
    HunyuanVideo15Transformer3DModel,
    HunyuanVideoTransformer3DModel,
)
from diffusers.loaders.single_file_utils import convert_hunyuan_video_transformer_to_diffusers
from transformers import (
    CLIPConfig,
    CLIPModel,
    CLIPTextConfig,
    CLIPTextModel,
    CLIPVisionConfig,
    CLIPVisionModel,
    LlamaConfig,
    LlamaForCausalLM,
    LlamaModel,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaModel,
    UMT5Config,
    UMT5EncoderModel,
)
from transformers.modeling_gguf_pytorch_utils import LlamaTensorProcessor

from longtake.configs.families import load_reference
from longtake.configs.models import bundled
from longtake.errors import ModelError
from longtake.pipelines.checkpoints.layout import CheckpointLayout, TensorNames
from longtake.pipelines.loading.files.tensor_files import Tensor
from longtake.pipelines.models.hunyuan_video.configs import VaeConfig
from longtake.pipelines.models.hunyuan_video.family import FAMILY
from longtake.pipelines.text_encoders.tensor_names import llava_without_head
from tests import foreign_hunyuan as foreign

LAYOUTS: tuple[CheckpointLayout, ...] = load_reference(FAMILY.layouts)
MODELS = Path(__file__).parents[4] / "configs" / "models"


def _whole_clip(**text: Any) -> CLIPConfig:
    return CLIPConfig(text_config=text, vision_config={"num_hidden_layers": 1})


TRANSFORMERS: dict[str, dict[str, Any]] = {
    "text to video": {},
    "token_replace": {"image_condition_type": "token_replace"},
    "latent_concat": {"image_condition_type": "latent_concat", "in_channels": 33},
    "without guidance": {"guidance_embeds": False},
}
WRITERS: dict[str, foreign.Writer] = {
    "diffusers'": dict,
    "tencent's": foreign.tencent_transformer,
    "ComfyUI's": foreign.comfyui_transformer,
    "later ComfyUI's": foreign.later_comfyui_transformer,
}
ENCODERS: dict[str, tuple[str, str, Any, Any]] = {
    "LlamaModel's": ("hunyuan-video", "text_encoder", LlamaModel, LlamaConfig),
    "LlamaForCausalLM's and ComfyUI's": (
        "hunyuan-video",
        "text_encoder",
        LlamaForCausalLM,
        LlamaConfig,
    ),
    "LlavaForConditionalGeneration's": (
        "hunyuan-video-i2v",
        "text_encoder",
        LlavaForConditionalGeneration,
        LlavaConfig,
    ),
    "transformers 5's": (
        "hunyuan-video",
        "text_encoder_2",
        CLIPTextModel,
        CLIPTextConfig,
    ),
    "transformers' and ComfyUI's": ("hunyuan-video", "text_encoder_2", CLIPModel, _whole_clip),
}
"""By layout: model and component whose configuration is read, and classes whose names are those."""


def headers(tensors: Mapping[str, torch.Tensor]) -> dict[str, Tensor]:
    return {name: Tensor("F32", tuple(each.shape), (0, 0)) for name, each in tensors.items()}


def config_of(model: str, component: str) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((MODELS / model / component / "config.json").read_text())
    return content


def recognized(tensors: Mapping[str, torch.Tensor]) -> CheckpointLayout:
    """The only layout of the tensors."""
    (found,) = (each for each in LAYOUTS if each.recognizes(headers(tensors)))
    return found


def merge(content: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """The content of a config.json with values of another one in it, nested ones, too."""
    merged = dict(content)
    for name, value in over.items():
        nested = isinstance(value, dict) and isinstance(merged.get(name), dict)
        merged[name] = merge(merged[name], value) if nested else value
    return merged


def used_names(layout: CheckpointLayout, config: Mapping[str, Any]) -> set[str]:
    return {piece.name for pieces in layout.names(config).values() for piece in pieces}


def assemble(names: TensorNames, file: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """A module's tensors, from the pieces of a file."""
    return {
        name: torch.cat([file[each.name][slice(*(each.rows or (None,)))] for each in pieces])
        for name, pieces in names.items()
    }


def row_ids(shapes: Mapping[str, torch.Size]) -> dict[str, torch.Tensor]:
    """A number of its own for each row of each tensor, instead of the values of the row."""
    ids, begin = {}, 0
    for name, shape in shapes.items():
        ids[name] = torch.arange(begin, begin + shape[0])
        begin += shape[0]
    return ids


def shapes_on_meta(module: Any, *args: Any, **settings: Any) -> dict[str, torch.Size]:
    with torch.device("meta"):
        return {name: each.shape for name, each in module(*args, **settings).state_dict().items()}


def assert_equal(found: Mapping[str, torch.Tensor], expected: Mapping[str, torch.Tensor]) -> None:
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert torch.equal(found[name].reshape(tensor.shape), tensor), name


@pytest.fixture(scope="module", params=TRANSFORMERS)
def full_size(request: pytest.FixtureRequest) -> tuple[dict[str, Any], dict[str, torch.Size]]:
    """Configuration and shapes of a transformer of 13 billion parameters."""
    config = {**config_of("hunyuan-video", "transformer"), **TRANSFORMERS[request.param]}
    own = {name: each for name, each in config.items() if not name.startswith("_")}
    return config, shapes_on_meta(HunyuanVideoTransformer3DModel, **own)


@pytest.mark.parametrize("name", WRITERS)
def test_rows_of_transformers_of_full_size(
    full_size: tuple[dict[str, Any], dict[str, torch.Size]], name: str
) -> None:
    config, shapes = full_size
    ids = row_ids(shapes)
    file = WRITERS[name](ids)
    if name == "tencent's":  # what is written by hand is what diffusers reads
        assert_equal(convert_hunyuan_video_transformer_to_diffusers(dict(file)), ids)
    (layout,) = (each for each in LAYOUTS if (each.name, each.component) == (name, "transformer"))
    assert dict(layout.shapes(config)) == shapes
    names = layout.names(config)
    assert len(names) == len(shapes)
    assert_equal(assemble(names, file), ids)
    assert used_names(layout, config) == file.keys()
    for own in ("transformer_blocks.7.attn.to_k.bias", "norm_out.linear.weight"):
        assert dict(names.items())[own] == names[own]


@pytest.mark.parametrize("name", WRITERS)
def test_sizes_of_transformers_of_full_size(
    full_size: tuple[dict[str, Any], dict[str, torch.Size]], name: str
) -> None:
    config, shapes = full_size
    file = WRITERS[name]({own: torch.empty(shape, device="meta") for own, shape in shapes.items()})
    layout = recognized(file)
    found = layout.config(headers(file))
    assert layout.name == name
    assert found == {own: config[own] for own in found}
    told = config.keys() - found.keys() - {"_class_name", "rope_axes_dim", "rope_theta"}
    untold = {"image_condition_type"} if config["in_channels"] == 16 else set()
    assert told <= untold


@pytest.mark.parametrize(("own_width", "wide"), [(22, 30), (26, 63), (96, 288)])
def test_ratios_of_widths(own_width: int, wide: int) -> None:
    """A ratio is told such that the module is built with the widths of the file."""
    settings = dict(
        num_attention_heads=1, attention_head_dim=own_width, num_layers=1, num_single_layers=1
    )
    shapes = shapes_on_meta(
        HunyuanVideoTransformer3DModel,
        num_refiner_layers=1,
        mlp_ratio=wide / own_width + 1e-9,
        rope_axes_dim=(2, 2, own_width // 2 * 2 - 4),
        **settings,
    )
    tensors = {name: torch.empty(shape, device="meta") for name, shape in shapes.items()}
    ratio = recognized(tensors).config(headers(tensors))["mlp_ratio"]
    assert int(own_width * ratio) == wide


@pytest.mark.parametrize("writer", [dict, foreign.comfyui_vae], ids=["diffusers'", "ComfyUI's"])
@pytest.mark.parametrize("model", ["hunyuan-video", "demo"])
def test_autoencoders(model: str, writer: foreign.Writer) -> None:
    config = config_of(model, "vae")
    own_config = {name: each for name, each in config.items() if not name.startswith("_")}
    shapes = shapes_on_meta(AutoencoderKLHunyuanVideo, **own_config)
    tensors = {name: torch.empty(shape, device="meta") for name, shape in shapes.items()}
    file = writer(tensors)
    layout = recognized(file)
    found = layout.config(headers(file))
    merged = {**config, **found}
    assert VaeConfig.model_validate(merged) == VaeConfig.model_validate(config)
    assert dict(layout.shapes(merged)) == shapes
    pieces = {own: file[names[0].name] for own, names in layout.names(merged).items()}
    assert {own: each.numel() for own, each in pieces.items()} == {
        own: shape.numel() for own, shape in shapes.items()
    }
    if model in bundled():
        own = foreign.component(bundled()[model], "vae")
        assert_equal(assemble(layout.names(merged), writer(own)), own)


@pytest.mark.parametrize("name", ENCODERS)
def test_encoders_of_full_size(name: str) -> None:
    model, component, kind, settings = ENCODERS[name]
    config = config_of(model, component)
    file = {
        own: torch.empty(shape, device="meta")
        for own, shape in shapes_on_meta(kind, settings(**config)).items()
    }
    layout = recognized(file)
    assert (layout.name, layout.component) == (name, component)
    found = layout.config(headers(file))
    merged = merge(config, found)
    assert merged == merge(found, config)  # nothing of the file contradicts the configuration
    names = layout.names(merged)
    shapes = dict(layout.shapes(merged))
    assert {own: file[pieces[0].name].shape for own, pieces in names.items()} == shapes
    used = {pieces[0].name for pieces in names.values()}
    assert used <= file.keys() and all(map(layout.unused, file.keys() - used))
    assert not any(map(layout.unused, used))


def test_rows_of_a_llama_in_gguf() -> None:
    """Names of the gguf package, and rows as transformers reads them, at full size."""
    config = config_of("hunyuan-video", "text_encoder")
    (layout,) = (each for each in LAYOUTS if each.name == "llama.cpp's")
    names, shapes = layout.names(config), dict(layout.shapes(config))
    known = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, config["num_hidden_layers"])
    for name, pieces in names.items():
        module, leaf = f"model.{name}".rsplit(".", 1)
        assert {f"{known.get_name(module)}.{leaf}"} == {piece.name for piece in pieces}
    processor = LlamaTensorProcessor(config=config)
    for name, rows in (("q", 4096), ("k", 1024)):
        own = f"layers.31.self_attn.{name}_proj.weight"
        assert shapes[own][0] == rows
        read = processor.process(
            np.arange(rows)[:, None], f"blk.31.attn_{name}.weight", tensor_key_mapping={}
        )
        first = [piece.rows[0] for piece in names[own] if piece.rows]
        assert first == read.weights.flatten().tolist()


@pytest.mark.parametrize(
    ("model", "component", "kind", "writer"),
    [
        ("demo", "text_encoder", LlamaModel, dict),
        ("demo", "text_encoder", LlamaModel, foreign.causal_lm),
        ("demo-i2v", "text_encoder", LlavaModel, dict),
        ("demo-i2v", "text_encoder", LlavaModel, foreign.earlier_llava),
        ("demo-i2v", "text_encoder", LlavaModel, foreign.llava_of_modules),
        ("demo-i2v", "text_encoder", LlavaModel, foreign.comfyui_llava),
        ("demo", "text_encoder_2", CLIPTextModel, dict),
        ("demo", "text_encoder_2", CLIPTextModel, foreign.clip_model),
    ],
)
def test_values_of_an_encoder(
    model: str, component: str, kind: Any, writer: foreign.Writer
) -> None:
    """transformers builds the same encoder of the pieces as of the model's own file."""
    own = foreign.component(bundled()[model], component)
    file = writer(own)
    layout = recognized(file)
    config = merge(config_of(model, component), layout.config(headers(file)))
    pieces = assemble(layout.names(config), file)
    assert {name: each.shape for name, each in pieces.items()} == dict(layout.shapes(config))
    assert all(layout.unused(name) for name in file if name not in used_names(layout, config))
    encoders = [
        kind.from_pretrained(
            None,
            config=kind.config_class.from_dict(config),
            state_dict=llava_without_head(tensors),
            output_loading_info=True,
        )
        for tensors in (own, pieces)
    ]
    for _, info in encoders:
        assert not info["missing_keys"] and not info["unexpected_keys"]
    assert_equal(encoders[1][0].state_dict(), encoders[0][0].state_dict())


@pytest.mark.parametrize(
    ("kind", "settings"),
    [
        (HunyuanVideo15Transformer3DModel, {"num_layers": 1, "num_refiner_layers": 1}),
        (FluxTransformer2DModel, {"num_layers": 1, "num_single_layers": 1}),
        (AutoencoderKLHunyuanVideo15, {}),
        (AutoencoderKLWan, {}),
        (CLIPVisionModel, {"config": CLIPVisionConfig(num_hidden_layers=1)}),
        (UMT5EncoderModel, {"config": UMT5Config(num_layers=1)}),
    ],
)
def test_other_models_are_not_recognized(kind: Any, settings: dict[str, Any]) -> None:
    shapes = shapes_on_meta(kind, **settings)
    found = {name: Tensor("F32", tuple(shape), (0, 0)) for name, shape in shapes.items()}
    assert not [each.name for each in LAYOUTS if each.recognizes(found)]


def test_names_are_small_however_many_layers_are_configured() -> None:
    many = dict.fromkeys(("num_layers", "num_single_layers", "num_refiner_layers"), 1000)
    deep = {"num_hidden_layers": 1000}
    for layout in LAYOUTS:
        if layout.component == "vae":
            continue
        model = "hunyuan-video-i2v" if "Llava" in layout.class_name else "hunyuan-video"
        config = merge(
            config_of(model, layout.component),
            {**many, **deep, "text_config": deep, "vision_config": deep},
        )
        tracemalloc.start()
        names = layout.names(config)
        seen = sum(1 for _ in itertools.islice(names.items(), 100))
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert seen == 100 and len(names) > 9000
        assert peak < (4_000_000 if layout.name == "llama.cpp's" else 200_000)  # 5120 rows a layer


@pytest.mark.parametrize(
    ("name", "shape", "reason"),
    [
        ("img_in.proj.weight", (96, 32), "must have 5 dimensions"),
        ("img_in.proj.weight", (96, 8, 1, 0, 0), "none of them 0"),
        ("final_layer.linear.weight", None, "final_layer.linear.weight is missing"),
        ("txt_in.input_embedder.weight", (192, 2**40), "text_embed_dim"),
        ("double_blocks.0.img_mlp.fc1.weight", (2**60, 192), "mlp_ratio"),
    ],
)
def test_hostile_shapes(name: str, shape: tuple[int, ...] | None, reason: str) -> None:
    own = foreign.component(bundled()["demo"], "transformer")
    tensors = headers(foreign.tencent_transformer(own))
    if shape is None:
        del tensors[name]
    else:
        tensors[name] = Tensor("F32", shape, (0, 0))
    (layout,) = (each for each in LAYOUTS if each.recognizes(tensors))
    with pytest.raises(ModelError, match=reason) as error:
        found = layout.config(tensors)
        layout.names({**config_of("demo", "transformer"), **found})
    assert "\n" not in str(error.value)
