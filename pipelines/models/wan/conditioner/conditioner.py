"""UMT5's hidden states of a prompt, and CLIP's of pictures.

Legend: H W pixels, L tokens of text or keys of pictures.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch.nn.functional import pad
from transformers import CLIPVisionModel, UMT5EncoderModel

from longtake.pipelines.codec.picture import Pixels
from longtake.pipelines.loading.checkpoint import Checkpoint
from longtake.pipelines.loading.plan import ComponentPlan
from longtake.pipelines.loading.quiet import quiet_libraries
from longtake.pipelines.models.wan.conditioner.prompt_cleaning import clean_prompt
from longtake.pipelines.prompt_tokens import PromptTemplate, PromptTokens, count_prompt_tokens
from longtake.pipelines.text_encoders import tensor_names
from longtake.pipelines.text_encoders.loading import (
    center_crop,
    load_encoder,
    load_image_processor,
    load_tokenizer,
)

_NO_TEMPLATE = PromptTemplate(template="{}", crop_start=0)

_IMAGE_STATES = -2
"""Hidden states of pictures that Wan was trained on: those before the last layer."""


class WanConditioner:
    """UMT5 and, for models with image keys, CLIP's vision encoder.

    Each is on the device only while it encodes.

    Args:
        checkpoint: Checkpoint that holds the encoders, the tokenizer and the image processor.
        device: Device that encodes.
        plan: Dtype and place of the weights.
        image_keys: Whether the transformer attends to keys of pictures, as in Wan 2.1.

    Raises:
        ModelError: A component is missing or damaged, or two are not of the same model.
    """

    def __init__(
        self, checkpoint: Checkpoint, device: torch.device, plan: ComponentPlan, *, image_keys: bool
    ) -> None:
        self._device, self._dtype = device, plan.dtype
        self._text_encoder = load_encoder(
            checkpoint, "text_encoder", UMT5EncoderModel, plan, device, tensor_names.umt5_encoder
        )
        self._tokenizer = load_tokenizer(checkpoint, "tokenizer", self._text_encoder)
        self._image_encoder = None
        if image_keys:
            self._image_encoder = load_encoder(
                checkpoint, "image_encoder", CLIPVisionModel, plan, device
            )
            image_px = self._image_encoder.module.config.image_size
            self._image_processor = load_image_processor(checkpoint, image_px)

    def encode(self, prompt: str, max_tokens: int) -> dict[str, torch.Tensor]:
        """Encode one prompt, and pad its hidden states with zeros.

        Wan attends to the padding, so it stays. UMT5 does not: it runs on the prompt's own tokens.

        Args:
            prompt: The prompt, as the user wrote it.
            max_tokens: Tokens after which the prompt is cut, and to which it is padded.

        Returns:
            ``text``, ``[1, max_tokens, text width]``, on the device.
        """
        with self._text_encoder.on_device(), quiet_libraries():
            ids = self._tokenizer(
                clean_prompt(prompt), truncation=True, max_length=max_tokens, return_tensors="pt"
            ).input_ids
            states = self._text_encoder.module(ids.to(self._device)).last_hidden_state.to(
                self._dtype
            )
        return {"text": pad(states, (0, 0, 0, max_tokens - states.shape[1]))}

    def encode_images(self, pictures: Sequence[Pixels]) -> dict[str, torch.Tensor]:
        """Encode pictures to keys of cross attention.

        Args:
            pictures: Pixels of each picture, ``[H, W, 3]``: the first frame's, and the last's for
                models that take one.

        Returns:
            ``image``, ``[1, L, image width]``, on the device: the keys of all pictures, in order.
            Empty for a model without image keys.
        """
        if self._image_encoder is None:
            return {}
        images = [center_crop(picture) for picture in pictures]
        pixels = self._image_processor(images, return_tensors="pt").pixel_values
        with self._image_encoder.on_device(), quiet_libraries():
            encoded = self._image_encoder.module(pixels.to(self._device), output_hidden_states=True)
        return {"image": encoded.hidden_states[_IMAGE_STATES].flatten(0, 1)[None]}

    def prompt_tokens(self, prompt: str, max_tokens: int) -> PromptTokens:
        """Count a prompt's tokens, and those of them that :meth:`encode` uses."""
        with quiet_libraries():
            return count_prompt_tokens(
                self._tokenizer, clean_prompt(prompt), _NO_TEMPLATE, max_tokens
            )
