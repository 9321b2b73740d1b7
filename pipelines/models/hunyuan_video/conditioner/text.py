"""Text encoders: LLaMA's hidden states and CLIP's pooled vector of a prompt."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

import torch
from diffusers import HunyuanVideoPipeline
from diffusers.pipelines.hunyuan_video.pipeline_hunyuan_video import DEFAULT_PROMPT_TEMPLATE
from transformers import CLIPTextModel, LlamaModel

from longtake.errors import RequestError
from longtake.pipelines.loading.checkpoint import Checkpoint
from longtake.pipelines.loading.plan import ComponentPlan
from longtake.pipelines.loading.quiet import quiet_libraries
from longtake.pipelines.prompt_tokens import PromptTemplate, PromptTokens, count_prompt_tokens
from longtake.pipelines.text_encoders.encoder import on_device
from longtake.pipelines.text_encoders.loading import load_encoder, load_tokenizer


class TextEncoders:
    """LLaMA and CLIP. They are on a GPU only while they encode.

    Args:
        checkpoint: Checkpoint that holds the encoders and their tokenizers.
        device: Device that encodes.
        plan: Dtype and place of the weights.

    Raises:
        ModelError: A component cannot be loaded.
    """

    _CLASSES: ClassVar[dict[str, tuple[Any, Callable[..., Any]]]] = {
        "text_encoder": (LlamaModel, dict),
        "text_encoder_2": (CLIPTextModel, dict),
    }

    def __init__(self, checkpoint: Checkpoint, device: torch.device, plan: ComponentPlan) -> None:
        self._device = device
        self._encoders = [
            load_encoder(checkpoint, component, encoder_class, plan, device, rename)
            for component, (encoder_class, rename) in self._CLASSES.items()
        ]
        tokenizers = [
            load_tokenizer(checkpoint, name, encoder)
            for name, encoder in zip(("tokenizer", "tokenizer_2"), self._encoders, strict=True)
        ]
        self._pipeline = HunyuanVideoPipeline(
            text_encoder=self._encoders[0].module,
            tokenizer=tokenizers[0],
            text_encoder_2=self._encoders[1].module,
            tokenizer_2=tokenizers[1],
            transformer=None,
            vae=None,
            scheduler=None,
        )

    def encode(
        self, prompt: str, template: PromptTemplate | None, max_tokens: int
    ) -> dict[str, torch.Tensor]:
        """Encode one prompt and remove the padding.

        Args:
            template: Prompt template; None for diffusers' default.
            max_tokens: Maximum number of prompt tokens.

        Returns:
            ``text``, ``[1, L, text width]``, the hidden states of the L tokens without padding, and
            ``pooled``, ``[1, pooled width]``.

        Raises:
            RequestError: No token remains after the template's.
        """
        prompt_template = (template or self.default_template()).model_dump()
        with on_device(self._encoders), quiet_libraries():
            text, pooled, mask = self._pipeline.encode_prompt(
                prompt=prompt,
                prompt_template=prompt_template,
                device=self._device,
                max_sequence_length=max_tokens,
            )
        text = text[:, mask[0].bool()]
        if text.shape[1] == 0:
            raise self._no_tokens_error(prompt, prompt_template["crop_start"])
        return {"text": text, "pooled": pooled}

    def prompt_tokens(
        self, prompt: str, template: PromptTemplate | None, max_tokens: int
    ) -> PromptTokens:
        """Count a prompt's tokens, and those of them that :meth:`encode` uses."""
        template = template or self.default_template()
        with quiet_libraries():
            return count_prompt_tokens(self._pipeline.tokenizer, prompt, template, max_tokens)

    @staticmethod
    def default_template() -> PromptTemplate:
        """Return diffusers' default prompt template."""
        return PromptTemplate.model_validate(DEFAULT_PROMPT_TEMPLATE)

    @staticmethod
    def _no_tokens_error(prompt: str, crop_start: int) -> RequestError:
        return RequestError(
            f"no token of prompt={prompt[:60]!r} is left after the prompt template's first "
            f"{crop_start} tokens: the model needs a template of its own, in longtake.yaml in its "
            "folder (prompt_template: {template, crop_start})"
        )
