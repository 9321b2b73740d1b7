"""HunyuanVideo's prompts beside a picture: LLaVA's hidden states of both, CLIP's of the words.

Legend: H W pixels, L tokens that are left.
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from PIL import Image
from transformers import CLIPTextModel, LlavaForConditionalGeneration

from longtake.configs.request import PromptTemplate
from longtake.errors import ModelError, RequestError, one_line
from longtake.pipelines.checkpoint import Checkpoint
from longtake.pipelines.hunyuan_video.configs import LlavaConfig
from longtake.pipelines.hunyuan_video.spec import HEADER_TOKENS
from longtake.pipelines.hunyuan_video.text import TextEncoders
from longtake.pipelines.picture import Pixels
from longtake.pipelines.quiet import quiet_libraries

try:
    from transformers import CLIPImageProcessorPil as CLIPImageProcessor
except ImportError:  # before transformers 5
    from transformers import CLIPImageProcessor

_LAYERS_SKIPPED = 2
"""The last ones of LLaMA, whose states are not used."""

_END_OF_HEADER = "<|end_header_id|>"
_LONGEST_SHAPE = 32
"""CLIP looks at the middle square; of a longer picture no more than this is scaled for it."""


class ImageTextEncoders(TextEncoders):
    """LLaVA and CLIP. LLaVA's tokens of the picture stand before those of the words."""

    _CLASSES: ClassVar[dict[str, Any]] = {
        "text_encoder": LlavaForConditionalGeneration,
        "text_encoder_2": CLIPTextModel,
    }

    def __init__(self, checkpoint: Checkpoint, device: torch.device, dtype: torch.dtype) -> None:
        super().__init__(checkpoint, device, dtype)
        self._processor = _image_processor(checkpoint)
        config = LlavaConfig.model_validate(checkpoint.config("text_encoder"))
        self._num_patches = config.num_patches

    def encode_beside(
        self,
        prompt: str,
        picture: Pixels,
        template: PromptTemplate | None,
        max_tokens: int,
        image_stride: int,
    ) -> dict[str, torch.Tensor]:
        """Encode one prompt and a picture.

        Args:
            picture: ``[H, W, 3]``.
            template: None is diffusers' own.
            max_tokens: that are used of the prompt at most.
            image_stride: one in so many of the picture's tokens is used.

        Returns:
            As :meth:`encode`.

        Raises:
            RequestError: no token is left behind the template, or the prompt holds the token that
                stands for the picture.
        """
        template = template or self.default_template()
        pixels = self._processor(_middle(picture), return_tensors="pt").pixel_values
        with self._on_device(), quiet_libraries():
            text = self._states(prompt, pixels.to(self._device), template, max_tokens, image_stride)
            mask = torch.ones(text.shape[:2], dtype=torch.bool, device=text.device)
            _, pooled, _ = self._pipeline.encode_prompt(
                prompt=prompt, prompt_embeds=text, prompt_attention_mask=mask, device=self._device
            )
        return {"text": text, "pooled": pooled}

    @staticmethod
    def default_template() -> PromptTemplate:
        """diffusers' own, whose module has transformers speak of torchvision."""
        with quiet_libraries():
            from diffusers.pipelines.hunyuan_video import (
                pipeline_hunyuan_video_image2video as theirs,
            )

        own = theirs.DEFAULT_PROMPT_TEMPLATE
        return PromptTemplate(template=own["template"], crop_start=own["crop_start"])

    def _states(
        self,
        prompt: str,
        pixels: torch.Tensor,
        template: PromptTemplate,
        max_tokens: int,
        image_stride: int,
    ) -> torch.Tensor:
        """``[1, L, text width]``: some of the picture's tokens, then the prompt's."""
        llava, tokenizer = self._encoders[0], self._pipeline.tokenizer
        ids = tokenizer(
            template.template.format(prompt),
            max_length=template.crop_start + max_tokens,
            truncation=True,
            return_tensors="pt",
        ).input_ids[0]
        found = (ids == llava.config.image_token_id).nonzero().flatten().tolist()
        if len(found) != 1:
            raise RequestError(
                f"prompt={prompt[:60]!r} and the prompt template hold {len(found)} tokens for the "
                "picture, and must hold one, in the template: take <image> out of the prompt, or "
                "put it into the template"
            )
        at, num_patches = found[0], self._num_patches
        expanded = torch.cat([ids[:at], ids[at].expand(num_patches), ids[at + 1 :]])[None]
        states: torch.Tensor = llava(
            input_ids=expanded.to(self._device),
            attention_mask=torch.ones_like(expanded, device=self._device),
            pixel_values=pixels,
            output_hidden_states=True,
            logits_to_keep=1,
        ).hidden_states[-(_LAYERS_SKIPPED + 1)]
        of_picture = states[:, at : at + num_patches : image_stride]
        of_words = torch.cat([states[:, :at], states[:, at + num_patches - 1 :]], dim=1)
        kept = self._words(ids, template)
        kept[at] = False
        if not kept.any():
            raise self._nothing_left(prompt, template.crop_start)
        return torch.cat([of_picture, of_words[:, kept.to(states.device)]], dim=1)

    def _words(self, ids: torch.Tensor, template: PromptTemplate) -> torch.Tensor:
        """Which tokens are the prompt's or stand behind the header of an answer to it."""
        kept = torch.arange(len(ids)) >= template.crop_start
        headers = template.template.count(_END_OF_HEADER)
        if headers:
            marker = self._pipeline.tokenizer.convert_tokens_to_ids(_END_OF_HEADER)
            ends = (ids == marker).nonzero().flatten().tolist()
            # Of a prompt that was cut short the answer's header is gone; then its own last go.
            end = 1 + (ends[-1] if len(ends) >= headers else len(ids) - 1)
            kept[max(0, end - HEADER_TOKENS) : end] = False
        return kept


def _middle(picture: Pixels) -> Image.Image:
    """A picture, or the middle of a very long one."""
    height, width, _ = picture.shape
    longest = _LONGEST_SHAPE * min(height, width)
    top, left = (max(0, side - longest) // 2 for side in (height, width))
    return Image.fromarray(picture[top : top + longest, left : left + longest])


def _image_processor(checkpoint: Checkpoint) -> Any:
    """What CLIP sees of a picture: by PIL, whether or not there is torchvision."""
    try:
        with quiet_libraries():
            folder = checkpoint.folder / "image_processor"
            return CLIPImageProcessor.from_pretrained(folder, local_files_only=True)
    except Exception as error:  # transformers raises anything on damaged files
        raise ModelError(
            f"{checkpoint.model} has an image_processor that cannot be loaded: {one_line(error)}"
        ) from error
