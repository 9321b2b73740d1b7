"""Tiny transformers that LoRAs are added to."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.lora_targets import Transformer


@pytest.fixture(scope="session")
def transformers(model: str, wan: Callable[[str], str]) -> Callable[[str], Transformer]:
    """The transformer of a tiny model by its kind: "hunyuan", or one of Wan's."""
    opened: dict[str, Transformer] = {}

    def transformer(kind: str) -> Transformer:
        if kind not in opened:
            opened[kind] = Transformer(model if kind == "hunyuan" else wan(kind))
        return opened[kind]

    return transformer
