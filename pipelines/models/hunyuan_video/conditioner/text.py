"""Text encoders: LLaMA's hidden states and CLIP's pooled vector of a prompt."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, ClassVar

import torch
from diffusers import HunyuanVideoPipeline
from diffusers.pipelines.hunyuan_video.pipeline_hunyuan_video import DEFAULT_PROMPT_TEMPLATE
from transformers import AutoTokenizer, CLIPTextModel, LlamaModel

from longtake.configs.field_types import PromptTemplate
from longtake.errors import ModelError, RequestError, one_line
from longtake.pipelines.loading.checkpoint import Checkpoint
from longtake.pipelines.loading.quiet import quiet_libraries
from longtake.pipelines.loading.weights import read_weights
from longtake.pipelines.prompt_tokens import PromptTokens, count_prompt_tokens


class TextEncoders:
    """LLaMA and CLIP. They are kept in host memory and moved to a GPU only while they encode.

    Args:
        checkpoint: Checkpoint that holds the encoders and their tokenizers.
        device: Device that encodes.
        dtype: Data type of the weights.

    Raises:
        ModelError: A component cannot be loaded.
    """

    _CLASSES: ClassVar[dict[str, Any]] = {
        "text_encoder": LlamaModel,
        "text_encoder_2": CLIPTextModel,
    }

    def __init__(self, checkpoint: Checkpoint, device: torch.device, dtype: torch.dtype) -> None:
        self._device = device
        try:
            with quiet_libraries():
                self._encoders, tokenizers = self._load(checkpoint, dtype)
        except ModelError:
            raise
        except Exception as error:  # transformers raises arbitrary exceptions on damaged files
            raise ModelError(
                f"{checkpoint.model} has text encoders that cannot be loaded: {one_line(error)}"
            ) from error
        self._pipeline = HunyuanVideoPipeline(
            text_encoder=self._encoders[0],
            tokenizer=tokenizers[0],
            text_encoder_2=self._encoders[1],
            tokenizer_2=tokenizers[1],
            transformer=None,
            vae=None,
            scheduler=None,
        )

    def _load(self, checkpoint: Checkpoint, dtype: torch.dtype) -> tuple[list[Any], list[Any]]:
        encoders = []
        for component, encoder in self._CLASSES.items():
            # Without a path, transformers uses only these tensors and this configuration.
            loaded, info = encoder.from_pretrained(
                None,
                config=encoder.config_class.from_dict(checkpoint.config(component)),
                state_dict=read_weights(checkpoint.weights(component)),
                dtype=dtype,
                attn_implementation="sdpa",  # a configuration could name a kernel on the hub
                output_loading_info=True,
            )
            if info["missing_keys"]:  # transformers would initialize them randomly
                raise ModelError(
                    f"{checkpoint.folder / component} lacks {min(info['missing_keys'])}: its "
                    "weights and its config.json are not of the same model"
                )
            encoders.append(loaded.eval())
        tokenizers = [
            AutoTokenizer.from_pretrained(
                checkpoint.folder / component, local_files_only=True, trust_remote_code=False
            )
            for component in ("tokenizer", "tokenizer_2")
        ]
        if any(tokenizer.pad_token is None for tokenizer in tokenizers):
            raise ModelError(
                f"{checkpoint.model} has a tokenizer without a pad_token: set one in its "
                "tokenizer_config.json, or download the model again"
            )
        return encoders, tokenizers

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
        with self._on_device(), quiet_libraries():
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

    @contextmanager
    def _on_device(self) -> Iterator[None]:
        """Hold the encoders on their device within the context, then return them to the CPU."""
        for encoder in self._encoders:
            encoder.to(self._device)
        try:
            yield
        finally:
            if self._device.type != "cpu":
                for encoder in self._encoders:
                    encoder.to("cpu")

    @staticmethod
    def _no_tokens_error(prompt: str, crop_start: int) -> RequestError:
        return RequestError(
            f"no token of prompt={prompt[:60]!r} is left after the prompt template's first "
            f"{crop_start} tokens: the model needs a template of its own, in longtake.yaml in its "
            "folder (prompt_template: {template, crop_start})"
        )
