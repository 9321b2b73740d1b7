"""How many tokens a prompt has, and how many of them are used."""

from __future__ import annotations

import pytest

from longtake.configs.request import PromptTemplate
from longtake.pipelines.prompt_tokens import PromptTokens, count_prompt_tokens
from tests import tiny

BARE = PromptTemplate(template="{}", crop_start=1)
AROUND = PromptTemplate(template="a dog : {} on sand", crop_start=4)


@pytest.mark.parametrize(
    ("words", "template", "max_tokens", "used"),
    [
        (3, BARE, 8, 3),
        (7, BARE, 8, 7),  # and the end mark, which is kept whatever is cut
        (8, BARE, 8, 7),
        (500, BARE, 8, 7),
        (3, AROUND, 8, 3),
        (7, AROUND, 8, 7),  # the template's end alone is cut
        (8, AROUND, 8, 7),
    ],
)
def test_counts_the_prompt_alone(
    words: int, template: PromptTemplate, max_tokens: int, used: int
) -> None:
    counted = count_prompt_tokens(tiny.tokenizer(16), "cat " * words, template, max_tokens)
    assert counted == PromptTokens(used=used, total=words)


def test_counts_unknown_words() -> None:
    counted = count_prompt_tokens(tiny.tokenizer(64), "Ωmega 猫 ~ cat", AROUND, 3)
    assert counted == PromptTokens(used=2, total=4)
