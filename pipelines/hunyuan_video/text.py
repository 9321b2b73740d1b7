"""HunyuanVideo's prompts: LLaMA's hidden states of the words, CLIP's pooled vector."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, ClassVar

import torch
from diffusers import HunyuanVideoPipeline
from diffusers.pipelines.hunyuan_video.pipeline_hunyuan_video import DEFAULT_PROMPT_TEMPLATE
from transformers import AutoTokenizer, CLIPTextModel, LlamaModel

from longtake.configs.request import PromptTemplate
from longtake.errors import ModelError, RequestError, one_line
from longtake.pipelines.checkpoint import Checkpoint
from longtake.pipelines.prompt_tokens import PromptTokens, count_prompt_tokens
from longtake.pipelines.quiet import quiet_libraries
from longtake.pipelines.weights import read_weights


class TextEncoders:
    """LLaMA and CLIP. On a GPU they are there only while they encode, else in host memory.

    Args:
        device: where they compute.
        dtype: of their weights.

    Raises:
        ModelError: a component cannot be loaded.
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
        except Exception as error:  # transformers raises anything on damaged files
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
            # Nothing but these tensors and this configuration is looked for in the folder.
            loaded, info = encoder.from_pretrained(
                None,
                config=encoder.config_class.from_dict(checkpoint.config(component)),
                state_dict=read_weights(checkpoint.weights(component)),
                dtype=dtype,
                attn_implementation="sdpa",  # a configuration could name code of the hub
                output_loading_info=True,
            )
            if info["missing_keys"]:  # transformers would draw them at random
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
        """Encode one prompt, and cut off the padding.

        Args:
            template: None is diffusers' own.
            max_tokens: that are used of the prompt at most.

        Returns:
            ``text`` ``[1, L, text width]``, the tokens that are really there, and ``pooled``
            ``[1, pooled width]``.

        Raises:
            RequestError: no token is left behind the template.
        """
        around = (template or self.default_template()).model_dump()
        with self._on_device(), quiet_libraries():
            text, pooled, mask = self._pipeline.encode_prompt(
                prompt=prompt,
                prompt_template=around,
                device=self._device,
                max_sequence_length=max_tokens,
            )
        text = text[:, mask[0].bool()]
        if text.shape[1] == 0:
            raise self._nothing_left(prompt, around["crop_start"])
        return {"text": text, "pooled": pooled}

    def prompt_tokens(
        self, prompt: str, template: PromptTemplate | None, max_tokens: int
    ) -> PromptTokens:
        """How many tokens a prompt has, and how many of them :meth:`encode` uses.

        Args:
            prompt, template, max_tokens: as for :meth:`encode`.
        """
        around = template or self.default_template()
        with quiet_libraries():
            return count_prompt_tokens(self._pipeline.tokenizer, prompt, around, max_tokens)

    @staticmethod
    def default_template() -> PromptTemplate:
        """diffusers' own."""
        return PromptTemplate.model_validate(DEFAULT_PROMPT_TEMPLATE)

    @contextmanager
    def _on_device(self) -> Iterator[None]:
        """The encoders are where they compute."""
        for encoder in self._encoders:
            encoder.to(self._device)
        try:
            yield
        finally:
            if self._device.type != "cpu":
                for encoder in self._encoders:
                    encoder.to("cpu")

    @staticmethod
    def _nothing_left(prompt: str, crop_start: int) -> RequestError:
        return RequestError(
            f"no token of prompt={prompt[:60]!r} is left behind the prompt template's first "
            f"{crop_start} tokens: the model needs a template of its own, in longtake.yaml in its "
            "folder (prompt_template: {template, crop_start})"
        )
