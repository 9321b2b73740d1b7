"""The untrained demo models: small instances of HunyuanVideo's classes, tokenizers and defaults.

Sizes: 17 frames of 64 x 64 pixels are 5 x 16 x 16 latents of 8 channels, and 80 tokens.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import yaml
from diffusers import (
    AutoencoderKLHunyuanVideo,
    FlowMatchEulerDiscreteScheduler,
    HunyuanVideoImageToVideoPipeline,
    HunyuanVideoPipeline,
    HunyuanVideoTransformer3DModel,
)
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import (
    CLIPImageProcessorPil,
    CLIPTextConfig,
    CLIPTextModel,
    CLIPVisionConfig,
    LlamaConfig,
    LlamaModel,
    LlavaConfig,
    LlavaForConditionalGeneration,
    PreTrainedTokenizerFast,
)

from training.demo.phrases import UNKNOWN, vocabulary

FRAMES, HEIGHT_PX, WIDTH_PX = 17, 64, 64
SIZE = dict(frames=FRAMES, height=HEIGHT_PX, width=WIDTH_PX)
LATENT_CHANNELS = 8
COMPRESSION = 4
"""Compression ratio along time, height and width."""

TEMPLATE = "video : {}"
CROP_START = 3  # <|begin|> video :
MAX_TEXT_TOKENS = 32
FLOW_SHIFT = 3.0
EXAMPLES = [
    "a green triangle moving up on a navy background",
    "a red circle moving right on a black background",
    "a yellow ring moving left on a brown background",
]
IMAGE_EXAMPLES = ["moving left", "the ring moves up", "sliding to the right"]
NOTE = "This demo model draws colored shapes; start with --model {} for real videos."

PAD, BEGIN, END = "<|pad|>", "<|begin|>", "<|end|>"
_SPECIAL = (PAD, UNKNOWN, BEGIN, END)
IMAGE, _HEADER, _END_HEADER, _END_TURN = (
    "<image>",
    "<|start_header_id|>",
    "<|end_header_id|>",
    "<|eot_id|>",
)
_MARKS = (IMAGE, _HEADER, _END_HEADER, _END_TURN, "assistant")
"""Extra tokens of the image-to-video template, after the vocabulary, which keeps its ids."""

IMAGE_TEMPLATE = f"{IMAGE} video : {{}} {_END_TURN} {_HEADER} assistant {_END_HEADER}"
IMAGE_CROP_START = 4  # <|begin|> <image> video :
NUM_MARKS = 4
"""Tokens between the end of the prompt and the end of the header, dropped after encoding."""
IMAGE_STRIDE = 4
"""Every n-th image token is used, as with token_replace."""
_IMAGE_PATCH_PX = 8
IMAGE_TOKENS = (HEIGHT_PX // _IMAGE_PATCH_PX) * (WIDTH_PX // _IMAGE_PATCH_PX)
_TEXT_WIDTH, _POOLED_WIDTH = 64, 32


def autoencoder() -> AutoencoderKLHunyuanVideo:
    """4 x 4 x 4 compression. Norm groups of at least 4 channels: smaller ones lose flat color."""
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


def transformer(image_condition_type: str | None = None) -> HunyuanVideoTransformer3DModel:
    """A transformer with six heads of size 32."""
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
        image_condition_type=image_condition_type,
    )


def text_encoders() -> tuple[LlamaModel, CLIPTextModel]:
    """A LLaMA of three layers and a CLIP text encoder.

    HunyuanVideo uses the hidden states before LLaMA's last two layers, here those of layer one.

    Word embeddings are initialized with standard deviation 1. With transformers' 0.02, the
    embeddings of the directions, which affect a frame least, stayed close together: videos ignored
    them after 4,800 steps. With 1, 400 steps suffice.
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


def llava(llama: LlamaModel) -> LlavaForConditionalGeneration:
    """A LLaVA of a trained LLaMA and an untrained vision tower."""
    own, first_mark = llama.config, llama.config.vocab_size
    vision = CLIPVisionConfig(
        hidden_size=64,
        intermediate_size=128,
        projection_dim=64,
        num_hidden_layers=4,  # the last is not used
        num_attention_heads=4,
        image_size=HEIGHT_PX,
        patch_size=_IMAGE_PATCH_PX,
    )
    text = LlamaConfig(**{**own.to_dict(), "vocab_size": first_mark + len(_MARKS)})
    model = LlavaForConditionalGeneration(
        LlavaConfig(
            vision_config=vision,
            text_config=text,
            image_token_index=first_mark,
            pad_token_id=own.pad_token_id,
            tie_word_embeddings=True,  # the head is not used
        )
    )
    words = model.get_input_embeddings().weight
    torch.nn.init.normal_(words)
    trained = llama.state_dict()
    with torch.no_grad():
        words[:first_mark] = trained.pop("embed_tokens.weight")
    model.model.language_model.load_state_dict(trained, strict=False)
    return model


def image_processor() -> CLIPImageProcessorPil:
    """An image processor that crops to a square and scales to [-1, 1]."""
    return CLIPImageProcessorPil(
        size={"shortest_edge": HEIGHT_PX},
        crop_size={"height": HEIGHT_PX, "width": WIDTH_PX},
        image_mean=[0.5] * 3,
        image_std=[0.5] * 3,
    )


def tokenizer(max_length: int, *, marks: bool = False) -> PreTrainedTokenizerFast:
    """A word-level tokenizer: lowercase, punctuation separate, one token for unknown words.

    Args:
        max_length: Largest number of tokens.
        marks: Whether to add the extra tokens of the image-to-video template.
    """
    more = _MARKS if marks else ()
    words = {word: at for at, word in enumerate([*_SPECIAL, *vocabulary(), *more])}
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
        additional_special_tokens=list(more),
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
    """Save the text-to-video pipeline in float16, with its defaults."""
    HunyuanVideoPipeline(
        text_encoder=llama,
        tokenizer=tokenizer(MAX_TEXT_TOKENS + CROP_START),
        transformer=denoiser,
        vae=vae,
        scheduler=FlowMatchEulerDiscreteScheduler(shift=FLOW_SHIFT),
        text_encoder_2=clip,
        tokenizer_2=tokenizer(77),
    ).to(torch.float16).save_pretrained(folder)
    shown = {"examples": EXAMPLES, "note": NOTE.format("hunyuan-video")}
    _save_defaults(folder, guidance_scale, TEMPLATE, CROP_START, **shown)


def save_image_to_video(
    folder: Path,
    vae: AutoencoderKLHunyuanVideo,
    denoiser: HunyuanVideoTransformer3DModel,
    llava: LlavaForConditionalGeneration,
    clip: CLIPTextModel,
) -> None:
    """Save the image-to-video pipeline in float16, with its defaults."""
    HunyuanVideoImageToVideoPipeline(
        text_encoder=llava,
        tokenizer=tokenizer(MAX_TEXT_TOKENS + IMAGE_CROP_START, marks=True),
        transformer=denoiser,
        vae=vae,
        scheduler=FlowMatchEulerDiscreteScheduler(shift=FLOW_SHIFT),
        text_encoder_2=clip,
        tokenizer_2=tokenizer(77),
        image_processor=image_processor(),
    ).to(torch.float16).save_pretrained(folder)
    only = {"sizes": {"64p": [[HEIGHT_PX, WIDTH_PX]]}, "dynamic_flow_shift": FLOW_SHIFT}
    shown = {"examples": IMAGE_EXAMPLES, "note": NOTE.format("hunyuan-video-i2v")}
    _save_defaults(folder, 1.0, IMAGE_TEMPLATE, IMAGE_CROP_START, **only, **shown)


def _save_defaults(
    folder: Path, guidance_scale: float, template: str, crop_start: int, **more: Any
) -> None:
    defaults = {
        "height": HEIGHT_PX,
        "width": WIDTH_PX,
        "num_frames": FRAMES,
        "num_inference_steps": 24,
        "guidance_scale": guidance_scale,
        "fps": 8,
        "prompt_template": {"template": template, "crop_start": crop_start},
        "max_sequence_length": MAX_TEXT_TOKENS,
        **more,
    }
    (folder / "longtake.yaml").write_text(yaml.safe_dump(defaults, sort_keys=False))
