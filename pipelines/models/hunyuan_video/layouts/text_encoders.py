"""Layouts of HunyuanVideo's text encoders: LLaMA, LLaVA and CLIP, whose names differ by prefixes.

A module's names are here those in files saved before transformers 5, which every version reads.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from operator import attrgetter
from typing import Any

from longtake.pipelines.checkpoints.layout import CheckpointLayout, Piece, TensorNames
from longtake.pipelines.checkpoints.module_shapes import ModuleShapes, parse_config
from longtake.pipelines.checkpoints.names import LayeredNames, Layers, renamed, split_layers
from longtake.pipelines.loading.component_config import Component
from longtake.pipelines.loading.files.tensor_files import Tensor
from longtake.pipelines.loading.tensor_shapes import NamedShapes
from longtake.pipelines.text_encoders.configs import ClipTextConfig, LlamaConfig, LlavaConfig
from longtake.pipelines.text_encoders.tensors import clip_tensors, llama_tensors, llava_tensors

Prefixes = Mapping[str, str]

_LANGUAGE, _VISION = "language_model.model.", "vision_tower.vision_model."
_PROJECTOR = "multi_modal_projector."
_TEXT = "text_model."


@dataclass(frozen=True)
class _Encoder:
    """A kind of encoder.

    Attributes:
        component: Its component in a model's folder.
        class_name: Its class in transformers.
        content: Its configuration.
        tensors: Names and shapes of its tensors, from its configuration.
        lists: By list of layers: where its configuration has their number.
        config: What the shapes tell.
        signature: Tensors that together no other encoder has.
        unused: Tensors of a file that it does not have.
    """

    component: str
    class_name: str
    content: type[Component]
    tensors: Callable[[Any], NamedShapes]
    lists: Mapping[str, str]
    config: Callable[[ModuleShapes], dict[str, Any]]
    signature: tuple[str, ...]
    unused: str

    def shapes(self, content: Mapping[str, Any]) -> NamedShapes:
        """Names and shapes for the content of a config.json."""
        return self.tensors(parse_config(self.content, content))

    def names(self, content: Mapping[str, Any], prefixes: Prefixes) -> TensorNames:
        """Names in a file whose prefixes differ, for the content of a config.json."""
        config = parse_config(self.content, content)
        counts = {each: attrgetter(field)(config) for each, field in self.lists.items()}
        for field in self.lists.values():
            config = _with(config, field.split("."), 1)
        outside, layers = split_layers(self.tensors(config), self.lists)
        return LayeredNames(
            {name: (Piece(_prefixed(name, prefixes)),) for name, _ in outside},
            *(
                Layers(each, _prefixed(each, prefixes), counts[each], renamed(layers[each], {}))
                for each in self.lists
            ),
        )


def _with(config: Component, field: list[str], value: int) -> Component:
    """A configuration with another value of a field, which may be nested."""
    name, *rest = field
    changed = _with(getattr(config, name), rest, value) if rest else value
    return config.model_copy(update={name: changed})


def _prefixed(name: str, prefixes: Prefixes) -> str:
    """A name with the first of the prefixes that it has replaced."""
    for old, new in prefixes.items():
        if name.startswith(old):
            return new + name.removeprefix(old)
    return name


def _moved(tensors: NamedShapes, prefixes: Prefixes) -> NamedShapes:
    return ((_prefixed(name, prefixes), shape) for name, shape in tensors)


def _llama_config(found: ModuleShapes, start: str = "") -> dict[str, Any]:
    """What the shapes of a LLaMA tell: not its number of heads."""
    vocabulary, width = found.shape(f"{start}embed_tokens.weight", 2)
    return {
        "vocab_size": vocabulary,
        "hidden_size": width,
        "intermediate_size": found.shape(f"{start}layers.0.mlp.gate_proj.weight", 2)[0],
        "num_hidden_layers": found.num_layers(f"{start}layers.{{}}.mlp.gate_proj.weight"),
        "attention_bias": f"{start}layers.0.self_attn.q_proj.bias" in found,
        "mlp_bias": f"{start}layers.0.mlp.gate_proj.bias" in found,
    }


def _layers_config(found: ModuleShapes, start: str) -> dict[str, Any]:
    """What the shapes of CLIP's layers tell: not the number of heads."""
    wide, width = found.shape(f"{start}encoder.layers.0.mlp.fc1.weight", 2)
    return {
        "hidden_size": width,
        "intermediate_size": wide,
        "num_hidden_layers": found.num_layers(f"{start}encoder.layers.{{}}.mlp.fc1.weight"),
    }


def _llava_config(found: ModuleShapes) -> dict[str, Any]:
    patch = found.shape(f"{_VISION}embeddings.patch_embedding.weight", 4)[2]
    tokens = found.shape(f"{_VISION}embeddings.position_embedding.weight", 2)[0]
    vision = {"patch_size": patch, "image_size": patch * math.isqrt(tokens - 1)}
    return {
        "text_config": _llama_config(found, _LANGUAGE),
        "vision_config": {**_layers_config(found, _VISION), **vision},
        "multimodal_projector_bias": f"{_PROJECTOR}linear_1.bias" in found,
    }


def _clip_config(found: ModuleShapes) -> dict[str, Any]:
    words = f"{_TEXT}embeddings."
    return {
        **_layers_config(found, _TEXT),
        "vocab_size": found.shape(f"{words}token_embedding.weight", 2)[0],
        "max_position_embeddings": found.shape(f"{words}position_embedding.weight", 2)[0],
    }


LLAMA = _Encoder(
    component="text_encoder",
    class_name="LlamaModel",
    content=LlamaConfig,
    tensors=llama_tensors,
    lists={"layers": "num_hidden_layers"},
    config=_llama_config,
    signature=("embed_tokens.weight", "layers.0.mlp.gate_proj.weight", "norm.weight"),
    unused=r"lm_head\..*|.*\.inv_freq",
)

_LLAVA = _Encoder(
    component="text_encoder",
    class_name="LlavaForConditionalGeneration",
    content=LlavaConfig,
    tensors=lambda config: _moved(
        llava_tensors(config), {"language_model.": _LANGUAGE, "vision_tower.": _VISION}
    ),
    lists={
        f"{_LANGUAGE}layers": "text_config.num_hidden_layers",
        f"{_VISION}encoder.layers": "vision_config.num_hidden_layers",
    },
    config=_llava_config,
    signature=(
        f"{_LANGUAGE}embed_tokens.weight",
        f"{_LANGUAGE}layers.0.mlp.gate_proj.weight",
        f"{_VISION}embeddings.class_embedding",
        f"{_PROJECTOR}linear_1.weight",
    ),
    unused=r"(language_model\.)?lm_head\..*|.*\.(inv_freq|position_ids)",
)

_CLIP = _Encoder(
    component="text_encoder_2",
    class_name="CLIPTextModel",
    content=ClipTextConfig,
    tensors=lambda config: _moved(clip_tensors(config), {"": _TEXT}),
    lists={f"{_TEXT}encoder.layers": "num_hidden_layers"},
    config=_clip_config,
    signature=(
        f"{_TEXT}embeddings.token_embedding.weight",
        f"{_TEXT}encoder.layers.0.mlp.fc1.weight",
        f"{_TEXT}final_layer_norm.weight",
    ),
    unused=r"(vision_model|text_projection|visual_projection)\..*|logit_scale|.*\.position_ids",
)


def _layout(name: str, encoder: _Encoder, prefixes: Prefixes) -> CheckpointLayout:
    unused = re.compile(encoder.unused)

    def found(tensors: Mapping[str, Tensor]) -> ModuleShapes:
        return ModuleShapes(tensors, lambda own: _prefixed(own, prefixes))

    def recognizes(tensors: Mapping[str, Tensor]) -> bool:
        """A LLaVA with the names of a LLaMA is none: it has a projector."""
        whole = encoder is _LLAVA or f"{_PROJECTOR}linear_1.weight" not in tensors
        return whole and all(each in found(tensors) for each in encoder.signature)

    return CheckpointLayout(
        name=name,
        component=encoder.component,
        class_name=encoder.class_name,
        recognizes=recognizes,
        config=lambda tensors: encoder.config(found(tensors)),
        shapes=encoder.shapes,
        names=lambda content: encoder.names(content, prefixes),
        unused=lambda name: unused.fullmatch(name) is not None,
    )


LAYOUTS = (
    _layout("LlamaModel's", LLAMA, {}),
    _layout("LlamaForCausalLM's and ComfyUI's", LLAMA, {"": "model."}),
    _layout("transformers'", _LLAVA, {}),
    _layout("transformers 5's", _LLAVA, {_VISION: "vision_tower."}),
    _layout(
        "LlavaForConditionalGeneration's",
        _LLAVA,
        {
            _LANGUAGE: "model.language_model.",
            _VISION: "model.vision_tower.",
            _PROJECTOR: f"model.{_PROJECTOR}",
        },
    ),
    _layout("ComfyUI's", _LLAVA, {_LANGUAGE: "model.", _VISION: "vision_model."}),
    _layout("transformers' and ComfyUI's", _CLIP, {}),
    _layout("transformers 5's", _CLIP, {_TEXT: ""}),
)
