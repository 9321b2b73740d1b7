"""The layouts in which files of Wan's components come, as data and without torch."""

from __future__ import annotations

from longtake.pipelines.checkpoints.folder_layout import FolderLayout
from longtake.pipelines.models.wan.layouts import clip_vision, transformer, umt5, vae

LAYOUTS = (*transformer.LAYOUTS, *vae.LAYOUTS, *umt5.LAYOUTS, *clip_vision.LAYOUTS)

_TRANSFORMER = "diffusion_pytorch_model*.safetensors"

FOLDER_LAYOUTS = (
    FolderLayout(
        "Wan's own",
        {
            "transformer": (f"high_noise_model/{_TRANSFORMER}", _TRANSFORMER),
            "transformer_2": (f"low_noise_model/{_TRANSFORMER}",),
            "vae": ("Wan2.[12]_VAE.pth",),
            "text_encoder": ("models_t5_umt5-xxl-enc-*.pth",),
            "image_encoder": ("models_clip_open-clip-xlm-roberta-large-vit-huge-14*.pth",),
            "tokenizer": ("google/umt5-xxl/*",),
        },
    ),
)
"""Wan-AI's repositories without "-Diffusers" in their names: 2.1 with the transformer at the top,
and 2.2 A14B with a folder for each expert."""
