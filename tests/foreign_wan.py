"""Wan's components under the names of other programs, written from diffusers' names.

The tables are written out by hand, in the direction opposite to the package's.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

Tensors = Mapping[str, torch.Tensor]

_OWN_TRANSFORMER = (
    (r"scale_shift_table", "head.modulation"),
    (r"proj_out\.(.*)", r"head.head.\1"),
    (r"condition_embedder\.time_proj\.(.*)", r"time_projection.1.\1"),
    (r"condition_embedder\.(time|text)_embedder\.linear_1\.(.*)", r"\1_embedding.0.\2"),
    (r"condition_embedder\.(time|text)_embedder\.linear_2\.(.*)", r"\1_embedding.2.\2"),
    (r"condition_embedder\.image_embedder\.pos_embed", "img_emb.emb_pos"),
    (r"condition_embedder\.image_embedder\.norm1\.(.*)", r"img_emb.proj.0.\1"),
    (r"condition_embedder\.image_embedder\.ff\.net\.0\.proj\.(.*)", r"img_emb.proj.1.\1"),
    (r"condition_embedder\.image_embedder\.ff\.net\.2\.(.*)", r"img_emb.proj.3.\1"),
    (r"condition_embedder\.image_embedder\.norm2\.(.*)", r"img_emb.proj.4.\1"),
    (r"(blocks\.\d+)\.scale_shift_table", r"\1.modulation"),
    (r"(blocks\.\d+)\.norm2\.(.*)", r"\1.norm3.\2"),
    (r"(blocks\.\d+)\.ffn\.net\.0\.proj\.(.*)", r"\1.ffn.0.\2"),
    (r"(blocks\.\d+)\.ffn\.net\.2\.(.*)", r"\1.ffn.2.\2"),
    (r"(blocks\.\d+)\.attn1\.to_([qkv])\.(.*)", r"\1.self_attn.\2.\3"),
    (r"(blocks\.\d+)\.attn1\.to_out\.0\.(.*)", r"\1.self_attn.o.\2"),
    (r"(blocks\.\d+)\.attn1\.norm_([qk])\.(.*)", r"\1.self_attn.norm_\2.\3"),
    (r"(blocks\.\d+)\.attn2\.to_([qkv])\.(.*)", r"\1.cross_attn.\2.\3"),
    (r"(blocks\.\d+)\.attn2\.to_out\.0\.(.*)", r"\1.cross_attn.o.\2"),
    (r"(blocks\.\d+)\.attn2\.norm_([qk])\.(.*)", r"\1.cross_attn.norm_\2.\3"),
    (r"(blocks\.\d+)\.attn2\.add_([kv])_proj\.(.*)", r"\1.cross_attn.\2_img.\3"),
    (r"(blocks\.\d+)\.attn2\.norm_added_k\.(.*)", r"\1.cross_attn.norm_k_img.\2"),
    (r"patch_embedding\.(.*)", r"patch_embedding.\1"),
)

_RESIDUAL = {
    "norm1": "residual.0",
    "conv1": "residual.2",
    "norm2": "residual.3",
    "conv2": "residual.6",
    "conv_shortcut": "shortcut",
}

_OWN_TEXT_ENCODER = (
    (r"shared\.weight", "token_embedding.weight"),
    (r"encoder\.final_layer_norm\.weight", "norm.weight"),
    (r"encoder\.block\.(\d+)\.layer\.0\.layer_norm\.weight", r"blocks.\1.norm1.weight"),
    (
        r"encoder\.block\.(\d+)\.layer\.0\.SelfAttention\.([qkvo])\.weight",
        r"blocks.\1.attn.\2.weight",
    ),
    (
        r"encoder\.block\.(\d+)\.layer\.0\.SelfAttention\.relative_attention_bias\.weight",
        r"blocks.\1.pos_embedding.embedding.weight",
    ),
    (r"encoder\.block\.(\d+)\.layer\.1\.layer_norm\.weight", r"blocks.\1.norm2.weight"),
    (
        r"encoder\.block\.(\d+)\.layer\.1\.DenseReluDense\.wi_0\.weight",
        r"blocks.\1.ffn.gate.0.weight",
    ),
    (r"encoder\.block\.(\d+)\.layer\.1\.DenseReluDense\.wi_1\.weight", r"blocks.\1.ffn.fc1.weight"),
    (r"encoder\.block\.(\d+)\.layer\.1\.DenseReluDense\.wo\.weight", r"blocks.\1.ffn.fc2.weight"),
)

_OWN_IMAGE_ENCODER = (
    (r"embeddings\.patch_embedding\.weight", "visual.patch_embedding.weight"),
    (r"pre_layrnorm\.(.*)", r"visual.pre_norm.\1"),
    (r"post_layernorm\.(.*)", r"visual.post_norm.\1"),
    (r"encoder\.layers\.(\d+)\.layer_norm([12])\.(.*)", r"visual.transformer.\1.norm\2.\3"),
    (r"encoder\.layers\.(\d+)\.self_attn\.out_proj\.(.*)", r"visual.transformer.\1.attn.proj.\2"),
    (r"encoder\.layers\.(\d+)\.mlp\.fc1\.(.*)", r"visual.transformer.\1.mlp.0.\2"),
    (r"encoder\.layers\.(\d+)\.mlp\.fc2\.(.*)", r"visual.transformer.\1.mlp.2.\2"),
)


def own_transformer(tensors: Tensors) -> dict[str, torch.Tensor]:
    """WanTransformer3DModel's tensors under Wan's own names."""
    return {_renamed(name, _OWN_TRANSFORMER): each for name, each in tensors.items()}


def own_autoencoder(tensors: Tensors, config: Mapping[str, Any]) -> dict[str, torch.Tensor]:
    """AutoencoderKLWan's tensors under Wan's own names.

    Args:
        tensors: The tensors by diffusers' names.
        config: The autoencoder's configuration.
    """
    name_of = _own_22 if config.get("is_residual") else _own_21
    residual_blocks = config.get("num_res_blocks", 2)
    return {_own_coder(name, name_of, residual_blocks): each for name, each in tensors.items()}


def own_text_encoder(tensors: Tensors) -> dict[str, torch.Tensor]:
    """UMT5EncoderModel's tensors under Wan's own names."""
    return {
        _renamed(name, _OWN_TEXT_ENCODER): each
        for name, each in tensors.items()
        if name != "encoder.embed_tokens.weight"
    }


def comfy_text_encoder(tensors: Tensors) -> dict[str, torch.Tensor]:
    """UMT5EncoderModel's tensors as in ComfyUI's files, which hold the vocabulary as bytes."""
    kept = {name: each for name, each in tensors.items() if not name.startswith("encoder.embed")}
    return {**kept, "spiece_model": torch.arange(64, dtype=torch.uint8)}


def own_image_encoder(tensors: Tensors) -> dict[str, torch.Tensor]:
    """CLIPVisionModel's tensors in Wan's own file, beside the projection and the text model."""
    tensors = {name.removeprefix("vision_model."): each for name, each in tensors.items()}
    own = {
        "visual.cls_embedding": tensors.pop("embeddings.class_embedding").view(1, 1, -1),
        "visual.pos_embedding": tensors.pop("embeddings.position_embedding.weight")[None],
    }
    tensors.pop("embeddings.position_ids", None)
    for name in [name for name in tensors if ".self_attn.q_proj." in name]:
        parts = [tensors.pop(name.replace(".q_proj.", f".{each}_proj.")) for each in "qkv"]
        _, _, layer, _, _, kind = name.split(".")
        own[f"visual.transformer.{layer}.attn.to_qkv.{kind}"] = torch.cat(parts)
    own |= {_renamed(name, _OWN_IMAGE_ENCODER): each for name, each in tensors.items()}
    text = {"textual.token_embedding.weight": torch.ones(3, 2), "log_scale": torch.ones([])}
    return {**own, "visual.head": torch.ones(8, 4), **text}


def comfy_image_encoder(tensors: Tensors) -> dict[str, torch.Tensor]:
    """CLIPVisionModel's tensors as in ComfyUI's files: transformers' older names, and more."""
    prefixed = {
        f"vision_model.{name.removeprefix('vision_model.')}": each for name, each in tensors.items()
    }
    positions = {"vision_model.embeddings.position_ids": torch.arange(17)[None]}
    return {**prefixed, **positions, "visual_projection.weight": torch.ones(8, 8)}


def component(model: str | Path, name: str) -> dict[str, torch.Tensor]:
    """The tensors of a component of a model in diffusers' layout, from its one file."""
    (file,) = (Path(model) / name).glob("*.safetensors")
    return load_file(file)


def config(model: str | Path, name: str) -> dict[str, Any]:
    """The content of a component's config.json of a model in diffusers' layout."""
    content: dict[str, Any] = json.loads((Path(model) / name / "config.json").read_text())
    return content


def own_components(model: str | Path) -> dict[str, dict[str, torch.Tensor]]:
    """The tensors of every component with weights, by component, under Wan's own names.

    Args:
        model: Folder of the model in diffusers' layout.
    """
    vae = config(model, "vae")
    write: dict[str, Callable[[Tensors], dict[str, torch.Tensor]]] = {
        "transformer": own_transformer,
        "transformer_2": own_transformer,
        "vae": lambda tensors: own_autoencoder(tensors, vae),
        "text_encoder": own_text_encoder,
        "image_encoder": own_image_encoder,
    }
    held = [name for name in write if (Path(model) / name).is_dir()]
    return {name: write[name](component(model, name)) for name in held}


def save_own_folder(model: str | Path, folder: Path) -> Path:
    """Save a model as Wan-AI's own repositories arrange it.

    Args:
        model: Folder of the model in diffusers' layout.
        folder: Folder to create.
    """
    components = own_components(model)
    homes = {"transformer": folder}
    if "transformer_2" in components:
        homes = {
            "transformer": folder / "high_noise_model",
            "transformer_2": folder / "low_noise_model",
        }
    for name, home in homes.items():
        home.mkdir(parents=True, exist_ok=True)
        save_file(components[name], home / "diffusion_pytorch_model.safetensors")
        (home / "config.json").write_text(json.dumps({"_class_name": "WanModel"}))
    version = "2.2" if config(model, "vae").get("is_residual") else "2.1"
    pickles = {
        "vae": f"Wan{version}_VAE.pth",
        "text_encoder": "models_t5_umt5-xxl-enc-bf16.pth",
        "image_encoder": "models_clip_open-clip-xlm-roberta-large-vit-huge-14.pth",
    }
    for name in pickles.keys() & components.keys():
        torch.save(components[name], folder / pickles[name])
    shutil.copytree(Path(model) / "tokenizer", folder / "google" / "umt5-xxl")
    return folder


def _renamed(name: str, table: Sequence[tuple[str, str]]) -> str:
    found = [match.expand(new) for old, new in table if (match := re.fullmatch(old, name))]
    assert len(found) == 1, name
    return found[0]


def _own_coder(name: str, name_of: Callable[[str, list[str], int], str], residual: int) -> str:
    parts = name.split(".")
    if parts[0] in ("quant_conv", "post_quant_conv"):
        return f"{'conv1' if parts[0] == 'quant_conv' else 'conv2'}.{parts[1]}"
    coder, kind, rest = parts[0], parts[1], parts[2:]
    outer = {"conv_in": "conv1", "norm_out": "head.0", "conv_out": "head.2"}
    if kind in outer:
        return ".".join([coder, outer[kind], *rest])
    if kind == "mid_block":
        number = {"resnets": 2 * int(rest[1]), "attentions": 1}[rest[0]]
        return ".".join([coder, "middle", str(number), *_layer(rest[2:])])
    return name_of(kind, rest, residual)


def _own_21(kind: str, rest: list[str], residual: int) -> str:
    """2.1: layers are numbered from end to end; diffusers numbers the decoder's by block."""
    if kind == "down_blocks":
        return ".".join(["encoder.downsamples", rest[0], *_layer(rest[1:])])
    within = int(rest[2]) if rest[1] == "resnets" else residual + 1
    number = int(rest[0]) * (residual + 2) + within
    return ".".join(["decoder.upsamples", str(number), *_layer(rest[3:])])


def _own_22(kind: str, rest: list[str], residual: int) -> str:
    """2.2: layers are numbered within blocks, the resampling after the residual blocks."""
    coder, list_name = (
        ("encoder", "downsamples") if kind == "down_blocks" else ("decoder", "upsamples")
    )
    start = [coder, list_name, rest[0], list_name]
    if rest[1] == "resnets":
        return ".".join([*start, rest[2], *_layer(rest[3:])])
    last = residual if kind == "down_blocks" else residual + 1
    return ".".join([*start, str(last), *_layer(rest[2:])])


def _layer(parts: list[str]) -> list[str]:
    return [_RESIDUAL.get(parts[0], parts[0]), *parts[1:]]
