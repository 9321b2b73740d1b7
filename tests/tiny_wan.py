"""Tiny Wan 2.1 and 2.2 models with random weights, saved in diffusers layout.

python -m tests.tiny_wan KIND FOLDER
"""

from __future__ import annotations

import json
import string
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from diffusers import (
    AutoencoderKLWan,
    UniPCMultistepScheduler,
    WanPipeline,
    WanTransformer3DModel,
)
from transformers import (
    CLIPImageProcessorPil,
    CLIPVisionConfig,
    CLIPVisionModel,
    T5TokenizerFast,
    UMT5Config,
    UMT5EncoderModel,
)

from longtake.pipelines.loading.quiet import quiet_libraries
from tests.tiny import WORDS

TEXT_TOKENS = 512
"""Length of the text, which diffusers' image-to-video hard-codes to tell image keys apart."""

IMAGE_PX, IMAGE_PATCH_PX, IMAGE_WIDTH = 16, 4, 8
IMAGE_TOKENS = (IMAGE_PX // IMAGE_PATCH_PX) ** 2 + 1
"""Keys of one picture: patches and the class token."""

_CHANNELS, _MASK_CHANNELS = 4, 4
_CONDITIONS = ("attn2", "text_embedder", "image_embedder", "patch_embedding")


@dataclass(frozen=True)
class Kind:
    """What distinguishes one kind of checkpoint.

    Attributes:
        transformer: Changes to the configuration of every transformer.
        experts: Number of transformers.
        vae: Changes to the autoencoder's configuration.
        index: Plain values of ``model_index.json``.
        flow_shift: The scheduler's shift.
        takes_picture: Whether the pipeline class is that of image to video.
        image_keys: Whether it has a CLIP vision encoder.
        defaults: Changes to the defaults in ``longtake.yaml``.
    """

    transformer: dict[str, Any] = field(default_factory=dict)
    experts: int = 1
    vae: dict[str, Any] = field(default_factory=dict)
    index: dict[str, Any] = field(default_factory=dict)
    flow_shift: float = 3.0
    takes_picture: bool = False
    image_keys: bool = False
    defaults: dict[str, Any] = field(default_factory=dict)


_PICTURE_CHANNELS = {"in_channels": 2 * _CHANNELS + _MASK_CHANNELS}
_IMAGE_KEYS = {**_PICTURE_CHANNELS, "image_dim": IMAGE_WIDTH, "added_kv_proj_dim": 48}
_TI2V_CHANNELS = 12

KINDS: dict[str, Kind] = {
    "wan21-t2v": Kind(),
    "wan21-i2v": Kind(_IMAGE_KEYS, takes_picture=True, image_keys=True),
    "wan21-flf2v": Kind(
        {**_IMAGE_KEYS, "pos_embed_seq_len": 2 * IMAGE_TOKENS},
        flow_shift=16.0,
        takes_picture=True,
        image_keys=True,
    ),
    "wan22-t2v": Kind(experts=2, index={"boundary_ratio": 0.875}),
    "wan22-i2v": Kind(
        _PICTURE_CHANNELS, experts=2, index={"boundary_ratio": 0.9}, takes_picture=True
    ),
    "wan22-ti2v": Kind(
        {"in_channels": _TI2V_CHANNELS, "out_channels": _TI2V_CHANNELS},
        vae=dict(
            z_dim=_TI2V_CHANNELS,
            decoder_base_dim=12,
            is_residual=True,
            in_channels=12,
            out_channels=12,
            patch_size=2,
            scale_factor_spatial=16,
        ),
        index={"expand_timesteps": True},
        flow_shift=5.0,
        defaults={"height": 64, "width": 96},
    ),
}
"""All kinds, by name. Every one has three heads, which no even number of ranks divides."""


def save(folder: Path, kind: str, *, own_defaults: bool = True, **changes: Any) -> Path:
    """Save a pipeline of a kind.

    Args:
        folder: Folder to create.
        kind: A name in :data:`KINDS`.
        own_defaults: Whether to save small defaults in ``longtake.yaml``.
        changes: Changes to the configuration of every transformer.
    """
    made = KINDS[kind]
    settings = {**made.transformer, **changes}
    components: dict[str, Any] = dict(
        tokenizer=tokenizer(),
        text_encoder=text_encoder(),
        vae=autoencoder(**made.vae),
        scheduler=UniPCMultistepScheduler(
            prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=made.flow_shift
        ),
        transformer=transformer(seed=0, **settings),
        **made.index,
    )
    if made.experts == 2:
        components["transformer_2"] = transformer(seed=1, **settings)
    if made.image_keys:
        components |= {"image_encoder": image_encoder(), "image_processor": image_processor()}
    pipeline = image_to_video_class() if made.takes_picture else WanPipeline
    pipeline(**components).save_pretrained(folder)
    if own_defaults:
        _save_defaults(folder, made.defaults)
    return folder


def reference(folder: str | Path, *, takes_picture: bool | None = None) -> Any:
    """Load diffusers' pipeline of a saved model.

    Args:
        folder: Folder of the model.
        takes_picture: Whether to load the pipeline of image to video; None for the class that
            ``model_index.json`` names. A 2.2 5B names that of text to video, and animates pictures
            through the other one, which takes the same components.
    """
    if takes_picture is None:
        named = json.loads((Path(folder) / "model_index.json").read_text())["_class_name"]
        takes_picture = named == "WanImageToVideoPipeline"
    with quiet_libraries():
        pipeline = image_to_video_class() if takes_picture else WanPipeline
        loaded = pipeline.from_pretrained(folder)
    loaded.set_progress_bar_config(disable=True)
    return loaded


def image_to_video_class() -> Any:
    """diffusers' pipeline of image to video; importing it makes transformers warn."""
    with quiet_libraries():
        from diffusers import WanImageToVideoPipeline
    return WanImageToVideoPipeline


def transformer(seed: int = 0, **changes: Any) -> WanTransformer3DModel:
    """A transformer with three heads of 16; its biases, norms and positions are random, too.

    Its conditions weigh more than by default, so that a wrong one shows in the frames: a prompt is
    a few keys among 512, most of which are padding's.
    """
    torch.manual_seed(seed)
    settings: dict[str, Any] = dict(
        in_channels=_CHANNELS,
        out_channels=_CHANNELS,
        num_attention_heads=3,
        attention_head_dim=16,
        num_layers=2,
        text_dim=16,
        freq_dim=32,
        ffn_dim=64,
    )
    model = WanTransformer3DModel(**{**settings, **changes})
    for name, parameter in model.named_parameters():
        if parameter.ndim == 1 or name.endswith("pos_embed"):
            torch.nn.init.normal_(parameter, std=0.3)
        elif any(part in name for part in _CONDITIONS):
            parameter.data.mul_(3)
    return model.eval().requires_grad_(False)


def autoencoder(**changes: Any) -> AutoencoderKLWan:
    """An autoencoder; one latent is 4 frames of 8 x 8 pixels, and its channels are scaled."""
    torch.manual_seed(2)
    channels = changes.get("z_dim", _CHANNELS)
    settings: dict[str, Any] = dict(
        base_dim=8,
        z_dim=channels,
        num_res_blocks=1,
        latents_mean=_spread(-0.6, 0.7, channels),
        latents_std=_spread(0.8, 1.9, channels),
    )
    return AutoencoderKLWan(**{**settings, **changes}).eval().requires_grad_(False)


def text_encoder(**changes: Any) -> UMT5EncoderModel:
    """A UMT5 of width 16, whose heads together are wider than it."""
    torch.manual_seed(3)
    settings: dict[str, Any] = dict(
        vocab_size=128,
        d_model=16,
        d_kv=8,
        d_ff=32,
        num_layers=2,
        num_heads=3,
        relative_attention_num_buckets=8,
        relative_attention_max_distance=16,
    )
    return UMT5EncoderModel(UMT5Config(**{**settings, **changes})).eval().requires_grad_(False)


def image_encoder() -> CLIPVisionModel:
    """A CLIP vision model of three layers, the last of which is unused."""
    torch.manual_seed(4)
    config = CLIPVisionConfig(
        hidden_size=IMAGE_WIDTH,
        intermediate_size=16,
        num_hidden_layers=3,
        num_attention_heads=2,
        image_size=IMAGE_PX,
        patch_size=IMAGE_PATCH_PX,
        projection_dim=8,
        hidden_act="gelu",
    )
    return CLIPVisionModel(config).eval().requires_grad_(False)


def image_processor() -> CLIPImageProcessorPil:
    """CLIP's image processor for the encoder's size."""
    return CLIPImageProcessorPil(
        size={"shortest_edge": IMAGE_PX}, crop_size={"height": IMAGE_PX, "width": IMAGE_PX}
    )


def tokenizer() -> T5TokenizerFast:
    """A T5 tokenizer of some words, and of the printable characters of ASCII."""
    words = [f"▁{word}" for word in WORDS if word.isalpha() and len(word) > 1]
    characters = ["▁", *string.ascii_letters, *string.digits, *"&;:,.'\"!?#<>()-%éñ猫"]
    vocabulary = [(piece, 0.0) for piece in ("<pad>", "</s>", "<unk>")]
    vocabulary += [(word, -2.0) for word in words]
    vocabulary += [(character, -4.0) for character in characters]
    return T5TokenizerFast(vocab=vocabulary, extra_ids=0, model_max_length=TEXT_TOKENS)


def _spread(low: float, high: float, count: int) -> Sequence[float]:
    values: list[float] = torch.linspace(low, high, count, dtype=torch.float64).tolist()
    return [round(value, 4) for value in values]


def _save_defaults(folder: Path, changes: dict[str, Any]) -> None:
    defaults = {
        "height": 32,
        "width": 48,
        "num_frames": 9,
        "num_inference_steps": 3,
        "guidance_scale": 5.0,
        "fps": 16,
        "max_sequence_length": TEXT_TOKENS,
    }
    (folder / "longtake.yaml").write_text(json.dumps({**defaults, **changes}))


if __name__ == "__main__":
    print(f"a tiny {sys.argv[1]} is in {save(Path(sys.argv[2]), sys.argv[1])}")
