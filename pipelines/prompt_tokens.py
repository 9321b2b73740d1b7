"""Counts the tokens of a prompt before and after truncation."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from longtake.configs.field_types import PromptTemplate


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
