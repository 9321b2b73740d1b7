"""HunyuanVideo's tensors under the names of other programs, written out by hand from diffusers'.

The functions take tensors by diffusers' or transformers' names, and only rename them and put rows
below each other: any values with the right numbers of rows will do.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

Tensors = Mapping[str, torch.Tensor]
Writer = Callable[[Tensors], dict[str, torch.Tensor]]

_REFINER = "context_embedder.token_refiner.refiner_blocks."


def component(model: Path, name: str) -> dict[str, torch.Tensor]:
    """The tensors of a component of a model's folder that has one file of weights."""
    (file,) = (model / name).glob("*.safetensors")
    return load_file(file)


def write(own: Tensors, path: Path, writer: Writer, prefix: str = "") -> Path:
    """Write a component in another layout as one safetensors file.

    Args:
        own: The component's tensors.
        path: Path of the file.
        writer: One of the functions below.
        prefix: What precedes each name in the file.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    tensors = {prefix + name: tensor.contiguous() for name, tensor in writer(own).items()}
    save_file(tensors, path)
    return path


def save_tencents_folder(model: Path, folder: Path) -> Path:
    """Save a text-to-video model as tencent's README arranges it.

    Args:
        model: Folder of the model in diffusers' layout.
        folder: Folder to create.
    """
    weights = folder / "hunyuan-video-t2v-720p"
    for name in ("transformers", "vae"):
        (weights / name).mkdir(parents=True)
    transformer = tencent_transformer(component(model, "transformer"))
    torch.save({"module": transformer}, weights / "transformers" / "mp_rank_00_model_states.pt")
    vae = {f"vae.{name}": each for name, each in component(model, "vae").items()}
    torch.save({"state_dict": vae}, weights / "vae" / "pytorch_model.pt")
    for number in ("", "_2"):
        shutil.copytree(model / f"text_encoder{number}", folder / f"text_encoder{number}")
        for file in (model / f"tokenizer{number}").iterdir():
            shutil.copy(file, folder / f"text_encoder{number}")
    return folder


@dataclass(frozen=True)
class _Spelling:
    """How a program spells the names in which tencent's and ComfyUI's differ."""

    attention: str
    query_norm: str
    key_norm: str
    modulation: str
    mlp: tuple[str, str]
    embedder: tuple[str, str]
    text_embedder: tuple[str, str]


_TENCENT = _Spelling(
    attention="_attn_",
    query_norm="q_norm.weight",
    key_norm="k_norm.weight",
    modulation="linear",
    mlp=("fc1", "fc2"),
    embedder=("mlp.0", "mlp.2"),
    text_embedder=("linear_1", "linear_2"),
)

_COMFYUI = _Spelling(
    attention="_attn.",
    query_norm="norm.query_norm.scale",
    key_norm="norm.key_norm.scale",
    modulation="lin",
    mlp=("0", "2"),
    embedder=("in_layer", "out_layer"),
    text_embedder=("in_layer", "out_layer"),
)


def tencent_transformer(own: Tensors) -> dict[str, torch.Tensor]:
    """As in ``mp_rank_00_model_states.pt``, within ``module``."""
    return _Transformer(own, _TENCENT).written()


def comfyui_transformer(own: Tensors) -> dict[str, torch.Tensor]:
    """As ComfyUI saves it, without ``model.model.``."""
    return _Transformer(own, _COMFYUI).written()


def later_comfyui_transformer(own: Tensors) -> dict[str, torch.Tensor]:
    """As later versions of ComfyUI save it, without ``model.model.``."""
    return {
        re.sub(r"_norm\.scale$", "_norm.weight", name): tensor
        for name, tensor in comfyui_transformer(own).items()
    }


class _Transformer:
    """Writes a transformer."""

    def __init__(self, own: Tensors, spelling: _Spelling) -> None:
        self._own, self._spelling = own, spelling
        self._file: dict[str, torch.Tensor] = {}
        self._used: set[str] = set()

    def written(self) -> dict[str, torch.Tensor]:
        self._embedders()
        for index in _indices(self._own, _REFINER):
            self._refiner(f"txt_in.individual_token_refiner.blocks.{index}.", f"{_REFINER}{index}.")
        for index in _indices(self._own, "transformer_blocks."):
            self._double(f"double_blocks.{index}.", f"transformer_blocks.{index}.")
        for index in _indices(self._own, "single_transformer_blocks."):
            self._single(f"single_blocks.{index}.", f"single_transformer_blocks.{index}.")
        for leaf in ("weight", "bias"):
            scale, shift = self._own[f"norm_out.linear.{leaf}"].chunk(2)
            self._file[f"final_layer.adaLN_modulation.1.{leaf}"] = torch.cat([shift, scale])
            self._used.add(f"norm_out.linear.{leaf}")
        self._put("final_layer.linear", "proj_out")
        assert self._used == self._own.keys(), self._used ^ self._own.keys()
        return self._file

    def _put(self, name: str, *owns: str) -> None:
        """Put layers below each other."""
        for leaf in ("weight", "bias"):
            names = [f"{own}.{leaf}" for own in owns]
            self._file[f"{name}.{leaf}"] = torch.cat([self._own[each] for each in names])
            self._used.update(names)

    def _put_norms(self, name: str, query: str, key: str) -> None:
        for suffix, own in ((self._spelling.query_norm, query), (self._spelling.key_norm, key)):
            self._file[name + suffix] = self._own[f"{own}.weight"]
            self._used.add(f"{own}.weight")

    def _put_embedder(self, name: str, own: str, layers: tuple[str, str]) -> None:
        self._put(f"{name}.{layers[0]}", f"{own}.linear_1")
        self._put(f"{name}.{layers[1]}", f"{own}.linear_2")

    def _put_mlp(self, name: str, own: str) -> None:
        self._put(f"{name}.{self._spelling.mlp[0]}", f"{own}.net.0.proj")
        self._put(f"{name}.{self._spelling.mlp[1]}", f"{own}.net.2")

    def _embedders(self) -> None:
        embedder, time, text = self._spelling.embedder, "time_text_embed.", "context_embedder."
        self._put("img_in.proj", "x_embedder.proj")
        self._put_embedder("time_in", f"{time}timestep_embedder", embedder)
        self._put_embedder("vector_in", f"{time}text_embedder", ("in_layer", "out_layer"))
        if f"{time}guidance_embedder.linear_1.weight" in self._own:
            self._put_embedder("guidance_in", f"{time}guidance_embedder", embedder)
        self._put("txt_in.input_embedder", f"{text}proj_in")
        self._put_embedder("txt_in.t_embedder", f"{text}{time}timestep_embedder", embedder)
        of_text = self._spelling.text_embedder
        self._put_embedder("txt_in.c_embedder", f"{text}{time}text_embedder", of_text)

    def _refiner(self, block: str, own: str) -> None:
        attention = f"{block}self{self._spelling.attention}"
        self._put(f"{block}norm1", f"{own}norm1")
        self._put(f"{block}norm2", f"{own}norm2")
        self._put(f"{attention}qkv", *(f"{own}attn.to_{each}" for each in "qkv"))
        self._put(f"{attention}proj", f"{own}attn.to_out.0")
        self._put_mlp(f"{block}mlp", f"{own}ff")
        self._put(f"{block}adaLN_modulation.1", f"{own}norm_out.linear")

    def _double(self, block: str, own: str) -> None:
        modulation, attention = self._spelling.modulation, self._spelling.attention
        self._put(f"{block}img_mod.{modulation}", f"{own}norm1.linear")
        self._put(f"{block}txt_mod.{modulation}", f"{own}norm1_context.linear")
        image, text = (f"{block}{side}{attention}" for side in ("img", "txt"))
        self._put(f"{image}qkv", *(f"{own}attn.to_{each}" for each in "qkv"))
        self._put(f"{text}qkv", *(f"{own}attn.add_{each}_proj" for each in "qkv"))
        self._put_norms(image, f"{own}attn.norm_q", f"{own}attn.norm_k")
        self._put_norms(text, f"{own}attn.norm_added_q", f"{own}attn.norm_added_k")
        self._put(f"{image}proj", f"{own}attn.to_out.0")
        self._put(f"{text}proj", f"{own}attn.to_add_out")
        self._put_mlp(f"{block}img_mlp", f"{own}ff")
        self._put_mlp(f"{block}txt_mlp", f"{own}ff_context")

    def _single(self, block: str, own: str) -> None:
        self._put(f"{block}modulation.{self._spelling.modulation}", f"{own}norm.linear")
        heads = [f"{own}attn.to_{each}" for each in "qkv"]
        self._put(f"{block}linear1", *heads, f"{own}proj_mlp")
        self._put(f"{block}linear2", f"{own}proj_out")
        self._put_norms(block, f"{own}attn.norm_q", f"{own}attn.norm_k")


def comfyui_vae(own: Tensors) -> dict[str, torch.Tensor]:
    """As ComfyUI saves it, in the names of latent diffusion's autoencoders."""
    blocks = len(_indices(own, "decoder.up_blocks."))
    file = {}
    for name, tensor in own.items():
        part, _, rest = name.partition(".")
        kind, _, inside = rest.partition(".")
        if kind == "mid_block" and inside.startswith("attentions.0."):
            layer, _, leaf = inside.removeprefix("attentions.0.").rpartition(".")
            short = {"group_norm": "norm", "to_q": "q", "to_k": "k", "to_v": "v"}
            is_linear = layer != "group_norm" and leaf == "weight"
            tensor = tensor.reshape(*tensor.shape, 1, 1, 1) if is_linear else tensor
            rest = f"mid.attn_1.{short.get(layer, 'proj_out')}.{leaf}"
        elif kind == "mid_block":
            _, index, leaf = inside.split(".", 2)
            rest = f"mid.block_{int(index) + 1}.{leaf}"
        elif kind in ("down_blocks", "up_blocks"):
            at, layers, index, leaf = inside.split(".", 3)
            way = kind.removesuffix("_blocks")
            block = blocks - 1 - int(at) if way == "up" else int(at)
            leaf = leaf.replace("conv_shortcut", "nin_shortcut")
            layer = f"block.{index}" if layers == "resnets" else f"{way}sample"
            rest = f"{way}.{block}.{layer}.{leaf}"
        elif kind == "conv_norm_out":
            rest = f"norm_out.{inside}"
        file[f"{part}.{rest}"] = tensor
    return file


def causal_lm(own: Tensors) -> dict[str, torch.Tensor]:
    """A LLaMA as of LlamaForCausalLM, and in ComfyUI's ``llava_llama3_fp16.safetensors``."""
    head = {"lm_head.weight": own["embed_tokens.weight"].clone()}
    return {f"model.{name}": tensor for name, tensor in own.items()} | head


def llama_cpp(own: Tensors, num_heads: int = 4) -> dict[str, torch.Tensor]:
    """A LLaMA as llama.cpp converts it for GGUF files, whose rotations turn neighbouring rows.

    Args:
        own: Tensors of LlamaModel.
        num_heads: Number of heads, of keys and values, too.
    """
    file = {
        "token_embd.weight": own["embed_tokens.weight"],
        "output_norm.weight": own["norm.weight"],
        "output.weight": own["embed_tokens.weight"].clone(),
        "rope_freqs.weight": torch.ones(8),
    }
    for index in _indices(own, "layers."):
        block, mine = f"blk.{index}.", f"layers.{index}."
        for name, own_name in (("attn_q", "q_proj"), ("attn_k", "k_proj")):
            weight = own[f"{mine}self_attn.{own_name}.weight"]
            halves = weight.reshape(num_heads, 2, -1, *weight.shape[1:])
            file[f"{block}{name}.weight"] = halves.transpose(1, 2).reshape(weight.shape)
        file[f"{block}attn_v.weight"] = own[f"{mine}self_attn.v_proj.weight"]
        file[f"{block}attn_output.weight"] = own[f"{mine}self_attn.o_proj.weight"]
        file[f"{block}attn_norm.weight"] = own[f"{mine}input_layernorm.weight"]
        file[f"{block}ffn_norm.weight"] = own[f"{mine}post_attention_layernorm.weight"]
        for name in ("gate", "up", "down"):
            file[f"{block}ffn_{name}.weight"] = own[f"{mine}mlp.{name}_proj.weight"]
    return file


def clip_model(own: Tensors) -> dict[str, torch.Tensor]:
    """CLIP's text model as in files of the whole CLIP, and in ComfyUI's ``clip_l.safetensors``.

    Args:
        own: Tensors as transformers 5 saves them.
    """
    width = own["final_layer_norm.weight"].shape[0]
    unused = {
        "logit_scale": torch.zeros(()),
        "text_projection.weight": torch.zeros(width, width),
        "text_model.embeddings.position_ids": torch.arange(77)[None],
    }
    return {f"text_model.{name}": tensor for name, tensor in own.items()} | unused


def earlier_llava(own: Tensors) -> dict[str, torch.Tensor]:
    """A LLaVA as it is saved before transformers 5, and as tencent's README downloads it.

    Args:
        own: Tensors as transformers 5 saves them.
    """
    return _llava(own, "language_model.model.", "vision_tower.vision_model.", "")


def llava_of_modules(own: Tensors) -> dict[str, torch.Tensor]:
    """A LLaVA under the names of the modules of LlavaForConditionalGeneration."""
    return _llava(own, "model.language_model.", "model.vision_tower.", "model.")


def comfyui_llava(own: Tensors) -> dict[str, torch.Tensor]:
    """A LLaVA as in ComfyUI's ``llava_llama3_fp16`` and ``llava_llama3_vision``, together."""
    return _llava(own, "model.", "vision_model.", "")


def _llava(own: Tensors, language: str, vision: str, projector: str) -> dict[str, torch.Tensor]:
    file = {}
    for name, tensor in own.items():
        if name.startswith("language_model.model."):
            file[language + name.removeprefix("language_model.model.")] = tensor
        elif name.startswith("vision_tower."):
            file[vision + name.removeprefix("vision_tower.")] = tensor
        elif name.startswith("multi_modal_projector."):
            file[projector + name] = tensor
        else:
            assert name == "language_model.lm_head.weight", name
            file["lm_head.weight"] = tensor
    return file


def _indices(own: Tensors, start: str) -> list[int]:
    return sorted(
        {int(name.removeprefix(start).split(".")[0]) for name in own if name.startswith(start)}
    )
