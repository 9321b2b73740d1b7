"""Tiny HunyuanVideo models with random weights, saved in diffusers layout.

python -m tests.tiny FOLDER
"""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import torch
from diffusers import (
    AutoencoderKLHunyuanVideo,
    FlowMatchEulerDiscreteScheduler,
    HunyuanVideoPipeline,
    HunyuanVideoTransformer3DModel,
)
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPVisionConfig,
    LlamaConfig,
    LlamaModel,
    LlavaConfig,
    LlavaForConditionalGeneration,
    PreTrainedTokenizerFast,
)

from longtake.pipelines.loading.quiet import quiet_libraries

TEMPLATE: dict[str, Any] = {"template": "<|begin|> describe : {} <|end|>", "crop_start": 4}
"""A prompt template of words in the tiny vocabulary."""

MAX_TOKENS = 24

IMAGE_TEMPLATE: dict[str, Any] = {
    "template": "<image> describe : {} <|eot_id|> <|start_header_id|> assistant <|end_header_id|>",
    "crop_start": 4,
}
"""A prompt template for image-to-video."""

IMAGE_TOKENS = 16

WORDS = "a the cat dog walks runs on grass sand red blue green , . : describe slowly fast".split()

MARKS = ["<image>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"]

VOCABULARY = ["<|pad|>", "<|begin|>", "<|end|>", "<|unknown|>", *WORDS, *MARKS, "assistant", "\n\n"]


def transformer(**changes: Any) -> HunyuanVideoTransformer3DModel:
    """A transformer with six heads of 16; its biases and norms are random, too."""
    torch.manual_seed(0)
    settings: dict[str, Any] = dict(
        in_channels=4,
        out_channels=4,
        num_attention_heads=6,
        attention_head_dim=16,
        num_layers=2,
        num_single_layers=2,
        num_refiner_layers=1,
        patch_size=2,
        patch_size_t=1,
        guidance_embeds=True,
        text_embed_dim=16,
        pooled_projection_dim=8,
        rope_axes_dim=(4, 6, 6),
    )
    model = HunyuanVideoTransformer3DModel(**{**settings, **changes})
    for parameter in model.parameters():
        if parameter.ndim == 1:
            torch.nn.init.normal_(parameter, std=0.3)
    return model.eval().requires_grad_(False)


def autoencoder(**changes: Any) -> AutoencoderKLHunyuanVideo:
    """An autoencoder with 4 latent channels; one latent is 8 x 8 pixels and 4 frames."""
    torch.manual_seed(1)
    settings: dict[str, Any] = dict(
        latent_channels=4,
        block_out_channels=(8, 8, 8, 8),
        layers_per_block=1,
        norm_num_groups=4,
        mid_block_add_attention=True,
    )
    vae = AutoencoderKLHunyuanVideo(**{**settings, **changes})
    return vae.eval().requires_grad_(False)


def save(folder: Path, *, own_template: bool = True, **changes: Any) -> Path:
    """Save a text-to-video pipeline.

    Args:
        folder: Folder to create.
        own_template: Whether to save :data:`TEMPLATE` and other defaults, instead of using those of
            diffusers.
        changes: Changes to the transformer's configuration.
    """
    model, vae = transformer(**changes), autoencoder()
    HunyuanVideoPipeline(
        text_encoder=LlamaModel(_llama()).eval(),
        tokenizer=tokenizer(256 + 95),
        transformer=model,
        vae=vae,
        scheduler=FlowMatchEulerDiscreteScheduler(shift=7.0),
        text_encoder_2=_clip(),
        tokenizer_2=tokenizer(77),
    ).save_pretrained(folder)
    if own_template:
        _save_defaults(folder, TEMPLATE)
    return folder


def save_image_to_video(
    folder: Path, conditioning: str, *, own_template: bool = True, **changes: Any
) -> Path:
    """Save an image-to-video pipeline.

    Args:
        folder: Folder to create.
        conditioning: ``token_replace`` or ``latent_concat``.
        own_template: As in :func:`save`; without it, a picture has 576 tokens, as diffusers'
            template expects.
        changes: Changes to the transformer's configuration.
    """
    with quiet_libraries():
        from diffusers import HunyuanVideoImageToVideoPipeline
    from transformers import CLIPImageProcessorPil

    channels = {"in_channels": 9} if conditioning == "latent_concat" else {}
    model = transformer(image_condition_type=conditioning, **channels, **changes)
    vae = autoencoder()
    image_px = 16 if own_template else 96
    HunyuanVideoImageToVideoPipeline(
        text_encoder=_llava(image_px),
        tokenizer=tokenizer(256 + 103),
        transformer=model,
        vae=vae,
        scheduler=FlowMatchEulerDiscreteScheduler(shift=7.0),
        text_encoder_2=_clip(),
        tokenizer_2=tokenizer(77),
        image_processor=CLIPImageProcessorPil(
            size={"shortest_edge": image_px}, crop_size={"height": image_px, "width": image_px}
        ),
    ).save_pretrained(folder)
    if own_template:
        _save_defaults(folder, IMAGE_TEMPLATE)
    return folder


def _llama(**changes: Any) -> LlamaConfig:
    settings: dict[str, Any] = dict(
        vocab_size=64,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=3,
        num_attention_heads=2,
        max_position_embeddings=512,
    )
    return LlamaConfig(**{**settings, **changes})


def _llava(image_px: int) -> LlavaForConditionalGeneration:
    vision = CLIPVisionConfig(
        hidden_size=8,
        intermediate_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        image_size=image_px,
        patch_size=4,
        projection_dim=8,
    )
    config = LlavaConfig(
        vision_config=vision,
        text_config=_llama(max_position_embeddings=2048),
        image_token_index=VOCABULARY.index("<image>"),
        pad_token_id=0,
    )
    return LlavaForConditionalGeneration(config).eval()


def _clip() -> CLIPTextModel:
    config = CLIPTextConfig(
        vocab_size=64,
        hidden_size=8,
        intermediate_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=77,
        projection_dim=8,
        bos_token_id=1,
        eos_token_id=2,
    )
    return CLIPTextModel(config).eval()


def _save_defaults(folder: Path, template: dict[str, Any]) -> None:
    defaults = {
        "height": 32,
        "width": 48,
        "num_frames": 9,
        "num_inference_steps": 3,
        "fps": 8,
        "prompt_template": template,
        "max_sequence_length": MAX_TOKENS,
    }
    (folder / "longtake.yaml").write_text(json.dumps(defaults))


def changed(folder: Path, to: Path, file: str, changes: dict[str, Any] | None) -> Path:
    """Copy a model with changes to one of its JSON files; None removes the file."""
    shutil.copytree(folder, to)
    if changes is None:
        (to / file).unlink()
    else:
        content = {**json.loads((to / file).read_text()), **changes}
        (to / file).write_text(json.dumps(content))
    return to


def num_text_tokens(prompt: str) -> int:
    """Number of tokens of a prompt in :data:`TEMPLATE`, after cropping and truncation."""
    ids: list[int] = tokenizer(512)(TEMPLATE["template"].format(prompt)).input_ids
    num_tokens: int = len(ids) - TEMPLATE["crop_start"]
    return min(num_tokens, MAX_TOKENS)


def tokenizer(max_length: int) -> PreTrainedTokenizerFast:
    """A tokenizer of :data:`VOCABULARY`; an unknown word is one token."""
    words = Tokenizer(
        models.WordLevel({word: at for at, word in enumerate(VOCABULARY)}, "<|unknown|>")
    )
    words.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(" ", "removed"), pre_tokenizers.Split("\n\n", "isolated")]
    )
    words.post_processor = processors.TemplateProcessing(
        single="<|begin|> $A <|end|>", special_tokens=[("<|begin|>", 1), ("<|end|>", 2)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=words,
        pad_token="<|pad|>",
        bos_token="<|begin|>",
        eos_token="<|end|>",
        unk_token="<|unknown|>",
        padding_side="right",
        model_max_length=max_length,
        additional_special_tokens=MARKS,
    )


if __name__ == "__main__":
    print(f"a tiny model with random weights is in {save(Path(sys.argv[1]))}")
