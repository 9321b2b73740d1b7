"""Wan-AI's own folders: its repositories without "Diffusers" in their names."""

from __future__ import annotations

from longtake.pipelines.checkpoints.folders import PublisherFolder

_TRANSFORMER = "diffusion_pytorch_model*.safetensors"

FOLDERS = (
    PublisherFolder(
        "Wan's own",
        files={
            "transformer": (f"high_noise_model/{_TRANSFORMER}", _TRANSFORMER),
            "transformer_2": (f"low_noise_model/{_TRANSFORMER}",),
            "vae": ("Wan2.[12]_VAE.pth",),
            "text_encoder": ("models_t5_umt5-xxl-enc-*.pth",),
            "image_encoder": ("models_clip_open-clip-xlm-roberta-large-vit-huge-14*.pth",),
        },
        folders={"tokenizer": "google/umt5-xxl"},
    ),
)
"""2.1 and 2.2 TI2V with the transformer at the top, and 2.2 A14B with a folder for each expert."""
