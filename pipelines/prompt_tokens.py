"""How much of a prompt a model reads."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from longtake.configs.request import PromptTemplate


@dataclass(frozen=True)
class PromptTokens:
    """Tokens of a prompt, without those of its template.

    Attributes:
        used: tokens that are encoded, from the first on.
        total: tokens that the prompt has.
    """

    used: int
    total: int


def count_prompt_tokens(
    tokenizer: Any, prompt: str, template: PromptTemplate, max_tokens: int
) -> PromptTokens:
    """Count the tokens of a prompt that are left when its template is cut to a length.

    Args:
        tokenizer: of transformers.
        max_tokens: tokens that are kept behind the template's ``crop_start``.
    """
    text, limit = template.template.format(prompt), template.crop_start + max_tokens
    begin = template.template.index("{}")
    end = begin + len(prompt)

    def count(**cut: Any) -> int:
        encoded = tokenizer(text, return_offsets_mapping=bool(tokenizer.is_fast), **cut)
        if tokenizer.is_fast:
            spans = encoded["offset_mapping"]
            return sum(left < end and right > begin for left, right in spans)
        return len(encoded["input_ids"]) - template.crop_start  # and what stands behind it

    return PromptTokens(used=count(truncation=True, max_length=limit), total=count())
