"""The demo model before it is trained: HunyuanVideo's classes in small, and what stands with them.

Sizes: 64 x 64 pixels and 17 frames are 5 x 16 x 16 latents of 8 channels, and 80 tokens.
"""

from __future__ import annotations

from pathlib import Path

import torch
import yaml
from diffusers import (
    AutoencoderKLHunyuanVideo,
    FlowMatchEulerDiscreteScheduler,
    HunyuanVideoPipeline,
    HunyuanVideoTransformer3DModel,
)
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    LlamaConfig,
    LlamaModel,
    PreTrainedTokenizerFast,
)

from training.demo.phrases import UNKNOWN, vocabulary

FRAMES, HEIGHT_PX, WIDTH_PX = 17, 64, 64
SIZE = dict(frames=FRAMES, height=HEIGHT_PX, width=WIDTH_PX)
LATENT_CHANNELS = 8
COMPRESSION = 4
"""Along time, height and width."""

TEMPLATE = "video : {}"
CROP_START = 3  # <|begin|> video :
MAX_TEXT_TOKENS = 32
FLOW_SHIFT = 3.0

PAD, BEGIN, END = "<|pad|>", "<|begin|>", "<|end|>"
_SPECIAL = (PAD, UNKNOWN, BEGIN, END)
_TEXT_WIDTH, _POOLED_WIDTH = 64, 32


def autoencoder() -> AutoencoderKLHunyuanVideo:
    """4 x 4 x 4 compression. Groups of at least four channels: flat color dies in smaller ones."""
    return AutoencoderKLHunyuanVideo(
        latent_channels=LATENT_CHANNELS,
        block_out_channels=(16, 32, 64),
        down_block_types=("HunyuanVideoDownBlock3D",) * 3,
        up_block_types=("HunyuanVideoUpBlock3D",) * 3,
        layers_per_block=1,
        norm_num_groups=4,
        mid_block_add_attention=False,
        spatial_compression_ratio=COMPRESSION,
        temporal_compression_ratio=COMPRESSION,
    )


def transformer() -> HunyuanVideoTransformer3DModel:
    """Six heads of 32."""
    return HunyuanVideoTransformer3DModel(
        in_channels=LATENT_CHANNELS,
        out_channels=LATENT_CHANNELS,
        num_attention_heads=6,
        attention_head_dim=32,
        num_layers=2,
        num_single_layers=4,
        num_refiner_layers=1,
        mlp_ratio=3.0,
        patch_size=4,
        patch_size_t=1,
        guidance_embeds=True,
        text_embed_dim=_TEXT_WIDTH,
        pooled_projection_dim=_POOLED_WIDTH,
        rope_axes_dim=(8, 12, 12),
    )


def text_encoders() -> tuple[LlamaModel, CLIPTextModel]:
    """HunyuanVideo takes the hidden states before the last two of LLaMA's layers: here, of one.

    Words begin far apart. At transformers' deviation of 0.02, those that tell least of a frame, the
    directions, stayed together: after 4,800 steps no video heeded them; so, 400 are enough.
    """
    words = dict(
        vocab_size=len(_SPECIAL) + len(vocabulary()),
        pad_token_id=_SPECIAL.index(PAD),
        bos_token_id=_SPECIAL.index(BEGIN),
        eos_token_id=_SPECIAL.index(END),
    )
    llama = LlamaModel(
        LlamaConfig(
            hidden_size=_TEXT_WIDTH,
            intermediate_size=2 * _TEXT_WIDTH,
            num_hidden_layers=3,
            num_attention_heads=4,
            max_position_embeddings=512,
            **words,
        )
    )
    clip = CLIPTextModel(
        CLIPTextConfig(
            hidden_size=_POOLED_WIDTH,
            intermediate_size=2 * _POOLED_WIDTH,
            num_hidden_layers=1,
            num_attention_heads=2,
            max_position_embeddings=77,
            projection_dim=_POOLED_WIDTH,
            **words,
        )
    )
    for encoder in (llama, clip):
        torch.nn.init.normal_(encoder.get_input_embeddings().weight)
    return llama, clip


def tokenizer(max_length: int) -> PreTrainedTokenizerFast:
    """Words in small letters, punctuation apart; what it does not know is one token."""
    words = {word: at for at, word in enumerate([*_SPECIAL, *vocabulary()])}
    by_word = Tokenizer(models.WordLevel(words, UNKNOWN))
    by_word.normalizer = normalizers.Lowercase()
    by_word.pre_tokenizer = pre_tokenizers.Whitespace()
    by_word.post_processor = processors.TemplateProcessing(
        single=f"{BEGIN} $A {END}",
        special_tokens=[(BEGIN, words[BEGIN]), (END, words[END])],
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=by_word,
        pad_token=PAD,
        unk_token=UNKNOWN,
        bos_token=BEGIN,
        eos_token=END,
        padding_side="right",
        model_max_length=max_length,
    )


def save(
    folder: Path,
    vae: AutoencoderKLHunyuanVideo,
    denoiser: HunyuanVideoTransformer3DModel,
    llama: LlamaModel,
    clip: CLIPTextModel,
    *,
    guidance_scale: float,
) -> None:
    """Save the whole pipeline in float16, with the defaults that it was trained for."""
    HunyuanVideoPipeline(
        text_encoder=llama,
        tokenizer=tokenizer(MAX_TEXT_TOKENS + CROP_START),
        transformer=denoiser,
        vae=vae,
        scheduler=FlowMatchEulerDiscreteScheduler(shift=FLOW_SHIFT),
        text_encoder_2=clip,
        tokenizer_2=tokenizer(77),
    ).to(torch.float16).save_pretrained(folder)
    defaults = {
        "height": HEIGHT_PX,
        "width": WIDTH_PX,
        "num_frames": FRAMES,
        "num_inference_steps": 24,
        "guidance_scale": guidance_scale,
        "fps": 8,
        "prompt_template": {"template": TEMPLATE, "crop_start": CROP_START},
        "max_sequence_length": MAX_TEXT_TOKENS,
    }
    (folder / "longtake.yaml").write_text(yaml.safe_dump(defaults, sort_keys=False))
