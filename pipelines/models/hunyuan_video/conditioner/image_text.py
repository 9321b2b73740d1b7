"""Image-to-video text encoders: LLaVA encodes picture and prompt, CLIP the prompt alone.

Legend: H W pixels, L tokens of the encoded picture and prompt.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

import torch
from transformers import CLIPTextModel, LlavaModel

from longtake.errors import RequestError
from longtake.pipelines.codec.picture import Pixels
from longtake.pipelines.loading.checkpoint import Checkpoint
from longtake.pipelines.loading.plan import ComponentPlan
from longtake.pipelines.loading.quiet import quiet_libraries
from longtake.pipelines.models.hunyuan_video.conditioner.text import TextEncoders
from longtake.pipelines.models.hunyuan_video.spec import HEADER_TOKENS
from longtake.pipelines.prompt_tokens import PromptTemplate
from longtake.pipelines.text_encoders import tensor_names
from longtake.pipelines.text_encoders.configs import LlavaConfig
from longtake.pipelines.text_encoders.encoder import on_device
from longtake.pipelines.text_encoders.loading import center_crop, load_image_processor

_LAYERS_SKIPPED = 2
"""Last LLaMA layers whose hidden states are not used."""

_END_OF_HEADER = "<|end_header_id|>"


class ImageTextEncoders(TextEncoders):
    """LLaVA, without its output head, and CLIP. Picture tokens precede prompt tokens."""

    _CLASSES: ClassVar[dict[str, tuple[Any, Callable[..., Any]]]] = {
        "text_encoder": (LlavaModel, tensor_names.llava_without_head),
        "text_encoder_2": (CLIPTextModel, dict),
    }

    def __init__(self, checkpoint: Checkpoint, device: torch.device, plan: ComponentPlan) -> None:
        super().__init__(checkpoint, device, plan)
        config = LlavaConfig.model_validate(checkpoint.config("text_encoder"))
        self._processor = load_image_processor(checkpoint, config.vision_config.image_size)
        self._num_patches = config.num_patches

    def encode_with_picture(
        self,
        prompt: str,
        picture: Pixels,
        template: PromptTemplate | None,
        max_tokens: int,
        image_stride: int,
    ) -> dict[str, torch.Tensor]:
        """Encode one prompt together with a picture.

        Args:
            picture: Pixels, ``[H, W, 3]``.
            template: Prompt template; None for diffusers' default.
            max_tokens: Maximum number of prompt tokens.
            image_stride: Stride at which the picture's tokens are sampled.

        Returns:
            ``text`` and ``pooled``, as :meth:`encode`.

        Raises:
            RequestError: No token remains after the template's, or the prompt contains the image
                token.
        """
        template = template or self.default_template()
        pixels = self._processor(center_crop(picture), return_tensors="pt").pixel_values
        with on_device(self._encoders), quiet_libraries():
            text = self._states(prompt, pixels.to(self._device), template, max_tokens, image_stride)
            mask = torch.ones(text.shape[:2], dtype=torch.bool, device=text.device)
            _, pooled, _ = self._pipeline.encode_prompt(
                prompt=prompt, prompt_embeds=text, prompt_attention_mask=mask, device=self._device
            )
        return {"text": text, "pooled": pooled}

    @staticmethod
    def default_template() -> PromptTemplate:
        """Return diffusers' default; importing it makes transformers warn about torchvision."""
        with quiet_libraries():
            from diffusers.pipelines.hunyuan_video import (
                pipeline_hunyuan_video_image2video as image_to_video,
            )

        default = image_to_video.DEFAULT_PROMPT_TEMPLATE
        return PromptTemplate(template=default["template"], crop_start=default["crop_start"])

    def _states(
        self,
        prompt: str,
        pixels: torch.Tensor,
        template: PromptTemplate,
        max_tokens: int,
        image_stride: int,
    ) -> torch.Tensor:
        """Hidden states ``[1, L, text width]``: sampled picture tokens, then prompt tokens."""
        llava, tokenizer = self._encoders[0].module, self._pipeline.tokenizer
        ids = tokenizer(
            template.template.format(prompt),
            max_length=template.crop_start + max_tokens,
            truncation=True,
            return_tensors="pt",
        ).input_ids[0]
        found = (ids == llava.config.image_token_id).nonzero().flatten().tolist()
        if len(found) != 1:
            raise RequestError(
                f"prompt={prompt[:60]!r} and the prompt template hold {len(found)} image tokens; "
                "there must be one, in the template: take <image> out of the prompt, or put it "
                "into the template"
            )
        at, num_patches = found[0], self._num_patches
        expanded = torch.cat([ids[:at], ids[at].expand(num_patches), ids[at + 1 :]])[None]
        states: torch.Tensor = llava(
            input_ids=expanded.to(self._device),
            attention_mask=torch.ones_like(expanded, device=self._device),
            pixel_values=pixels,
            output_hidden_states=True,
        ).hidden_states[-(_LAYERS_SKIPPED + 1)]
        picture_states = states[:, at : at + num_patches : image_stride]
        prompt_states = torch.cat([states[:, :at], states[:, at + num_patches - 1 :]], dim=1)
        mask = self._prompt_mask(ids, template)
        mask[at] = False
        if not mask.any():
            raise self._no_tokens_error(prompt, template.crop_start)
        return torch.cat([picture_states, prompt_states[:, mask.to(states.device)]], dim=1)

    def _prompt_mask(self, ids: torch.Tensor, template: PromptTemplate) -> torch.Tensor:
        """Mask of the tokens after the template's prefix, without the answer's header."""
        mask = torch.arange(len(ids)) >= template.crop_start
        headers = template.template.count(_END_OF_HEADER)
        if headers:
            marker = self._pipeline.tokenizer.convert_tokens_to_ids(_END_OF_HEADER)
            ends = (ids == marker).nonzero().flatten().tolist()
            # If truncation removed the answer's header, the last prompt tokens are dropped instead.
            end = 1 + (ends[-1] if len(ends) >= headers else len(ids) - 1)
            mask[max(0, end - HEADER_TOKENS) : end] = False
        return mask
