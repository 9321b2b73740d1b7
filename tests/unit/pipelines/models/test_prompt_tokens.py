"""Counts of prompt tokens before and after truncation."""

from __future__ import annotations

import pytest

from longtake.pipelines.prompt_tokens import PromptTemplate, PromptTokens, count_prompt_tokens
from tests import tiny

BARE = PromptTemplate(template="{}", crop_start=1)
AROUND = PromptTemplate(template="a dog : {} on sand", crop_start=4)


@pytest.mark.parametrize(
    ("words", "template", "max_tokens", "used"),
    [
        (3, BARE, 8, 3),
        (7, BARE, 8, 7),  # the end token is never truncated
        (8, BARE, 8, 7),
        (500, BARE, 8, 7),
        (3, AROUND, 8, 3),
        (7, AROUND, 8, 7),  # only the template's end is truncated
        (8, AROUND, 8, 7),
    ],
)
def test_template_tokens_are_not_counted(
    words: int, template: PromptTemplate, max_tokens: int, used: int
) -> None:
    counted = count_prompt_tokens(tiny.tokenizer(16), "cat " * words, template, max_tokens)
    assert counted == PromptTokens(used=used, total=words)


def test_unknown_words_are_counted() -> None:
    counted = count_prompt_tokens(tiny.tokenizer(64), "Ωmega 猫 ~ cat", AROUND, 3)
    assert counted == PromptTokens(used=2, total=4)
