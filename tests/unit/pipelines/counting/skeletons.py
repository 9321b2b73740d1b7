"""HunyuanVideo as a family without arithmetic of its own."""

from __future__ import annotations

from dataclasses import replace

import torch
from diffusers import AutoencoderKLHunyuanVideo, HunyuanVideoTransformer3DModel
from transformers import CLIPTextConfig, CLIPTextModel, LlamaConfig, LlamaModel

from longtake.pipelines.counting.skeleton import Skeleton
from longtake.pipelines.loading.build import build_module
from longtake.pipelines.loading.checkpoint import Checkpoint
from longtake.pipelines.models.hunyuan_video.codec.autoencoder import HunyuanVideoDecoder
from longtake.pipelines.models.hunyuan_video.transformer.denoiser import HunyuanVideoDenoiser
from longtake.pipelines.spec import LatentGrid, ModelSpec
from tests.unit.pipelines.counting.planned import ONE_CHUNK


def hunyuan_video(checkpoint: Checkpoint, spec: ModelSpec) -> Skeleton:
    """The modules of a HunyuanVideo checkpoint, without its text encoders."""
    config = checkpoint.config("transformer")
    transformer = build_module(HunyuanVideoTransformer3DModel, config, "transformer")
    vae = build_module(AutoencoderKLHunyuanVideo, checkpoint.config("vae"), "vae")

    def streams(num_text_tokens: int) -> dict[str, torch.Tensor]:
        text = torch.empty(1, num_text_tokens, transformer.config.text_embed_dim)
        return {"text": text, "pooled": torch.empty(1, transformer.config.pooled_projection_dim)}

    def pictures(grid: LatentGrid) -> dict[str, torch.Tensor]:
        return {"image": torch.empty(1, grid.shape[1], 1, *grid.shape[3:])}

    denoiser = HunyuanVideoDenoiser(transformer, tokens_per_chunk=ONE_CHUNK)
    denoiser.chunk_feed_forwards()
    return Skeleton(
        denoiser=denoiser,
        streams=streams,
        autoencoder=vae,
        decoder=lambda request: HunyuanVideoDecoder(vae, request),
        pictures=pictures,
    )


def with_text_encoders(checkpoint: Checkpoint, spec: ModelSpec) -> Skeleton:
    """The same with its text encoders."""
    with torch.device("meta"):
        encoders = (
            LlamaModel(LlamaConfig.from_dict(checkpoint.config("text_encoder"))),
            CLIPTextModel(CLIPTextConfig.from_dict(checkpoint.config("text_encoder_2"))),
        )
    return replace(hunyuan_video(checkpoint, spec), text_encoders=encoders)


def broken(checkpoint: Checkpoint, spec: ModelSpec) -> Skeleton:
    """A family that reads a value, which tensors on the meta device do not have."""
    torch.empty((), device="meta").item()
    return hunyuan_video(checkpoint, spec)
