"""Counts the tokens of a prompt before and after truncation."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import Field, field_validator

from longtake.configs.base import StrictModel


class PromptTemplate(StrictModel):
    """Text that surrounds a prompt when it is encoded.

    Attributes:
        template: The text, with ``{}`` in place of the prompt.
        crop_start: Number of leading template tokens whose embeddings are dropped.
    """

    template: Annotated[str, Field(max_length=10_000)]
    crop_start: Annotated[int, Field(ge=0)]

    @field_validator("template")
    @classmethod
    def _has_one_placeholder(cls, template: str) -> str:
        rest = template.replace("{}", "", 1)
        if rest == template or "{" in rest or "}" in rest:
            raise ValueError("must contain {} once, in place of the prompt, and no other braces")
        return template


@dataclass(frozen=True)
class PromptTokens:
    """Number of tokens of a prompt, excluding its template.

    Attributes:
        used: Number of leading tokens that are encoded.
        total: Number of tokens of the whole prompt.
    """

    used: int
    total: int


def count_prompt_tokens(
    tokenizer: Any, prompt: str, template: PromptTemplate, max_tokens: int
) -> PromptTokens:
    """Count the tokens of a prompt before and after truncation.

    Args:
        tokenizer: A transformers tokenizer.
        prompt: The prompt, without its template.
        template: The template that the prompt is inserted into.
        max_tokens: Largest number of tokens kept after the template's ``crop_start``.
    """
    text, limit = template.template.format(prompt), template.crop_start + max_tokens
    begin = template.template.index("{}")
    end = begin + len(prompt)

    def count(**truncation: Any) -> int:
        encoded = tokenizer(text, return_offsets_mapping=bool(tokenizer.is_fast), **truncation)
        if tokenizer.is_fast:
            spans = encoded["offset_mapping"]
            return sum(left < end and right > begin for left, right in spans)
        return len(encoded["input_ids"]) - template.crop_start  # includes the template's suffix

    return PromptTokens(used=count(truncation=True, max_length=limit), total=count())
