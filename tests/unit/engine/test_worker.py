"""Ranks that differ in model, dtype or storage are refused before anything is loaded."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from longtake.configs.engine import EngineConfig
from longtake.engine.worker import Worker
from longtake.errors import ModelError
from longtake.parallel import World
from tests.rendering import ALONE


@pytest.mark.parametrize(
    ("at", "other", "text"),
    [
        (0, "abc", "is at commit None on rank 0 and at abc on another: pass --revision"),
        (1, "bfloat16", "is float32 on rank 0 and bfloat16 on another: pass --dtype"),
        (2, "nf4", "is stored as the dtype on rank 0 and as nf4 on another: pass the same"),
    ],
)
def test_ranks_that_differ_are_refused(
    model: str, monkeypatch: pytest.MonkeyPatch, at: int, other: str, text: str
) -> None:
    def with_another_rank(world: World, own: list[Any]) -> list[Any]:
        return [own, [other if number == at else value for number, value in enumerate(own)]]

    monkeypatch.setattr(World, "gather_json", with_another_rank)
    with pytest.raises(ModelError, match=text):
        Worker(
            EngineConfig(model=model, weights="resident", text_weights="resident"),
            ALONE,
            lambda progress: None,
        )


def test_all_ranks_decode_in_rank_0s_dtype(model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only rank 0 may have read the latents' file, which names a dtype."""

    def on_another_rank(world: World, own: Any) -> list[Any]:
        if not isinstance(own, list):  # parts
            return [own, own]
        return [[*own[:3], "float16", *own[4:]], own]

    monkeypatch.setattr(World, "gather_json", on_another_rank)
    worker = Worker(
        EngineConfig(
            model=model, autoencoder_only=True, weights="resident", text_weights="resident"
        ),
        ALONE,
        lambda progress: None,
    )
    assert {each.dtype for each in worker._codec._vae.parameters()} == {torch.float16}  # type: ignore[attr-defined]
