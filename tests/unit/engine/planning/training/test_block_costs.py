"""The symbols of the tables against the exchanges' arithmetic, to the byte."""

from __future__ import annotations

import re

import pytest

from longtake.configs.decoders import DecoderConfig
from longtake.configs.hardware import load_hardware
from longtake.engine.planning.training.block_costs import (
    METHODS,
    Method,
    block_costs,
)
from longtake.engine.planning.training.training_input import TrainingInput

HEADS, WIDTH, TOKENS, BATCH = 8, 128, 4096, 8


def training(kv_heads: int) -> TrainingInput:
    """Float32, in which gradients and activations have the same bytes."""
    shape = DecoderConfig(
        hidden_size=WIDTH,
        intermediate_size=256,
        num_hidden_layers=2,
        num_attention_heads=HEADS,
        num_key_value_heads=kv_heads,
        head_dim=WIDTH // HEADS,
        vocab_size=64,
    )
    return TrainingInput(
        config=shape,
        hardware=load_hardware("a800"),
        sequence=TOKENS,
        batch=BATCH,
        dtype="float32",
    )


def value(formula: str, symbols: dict[str, float]) -> float:
    """The value of a formula, in which a space is a product."""
    spaced = re.sub(r"(?<=[\w)]) (?=[\w(])", " * ", formula)
    return float(eval(spaced, {}, symbols))


@pytest.mark.parametrize("kv_heads", [1, 2, 8])
@pytest.mark.parametrize("method", METHODS, ids=lambda method: method.name)
def test_symbols_are_bytes(method: Method, kv_heads: int) -> None:
    planned = training(kv_heads)
    for ranks, ring in ((2, 1), (4, 2), (8, 2), (8, 4)):
        layout = method.layout(ranks, ring)
        if kv_heads % layout.tensor:
            continue
        costs, whole = block_costs(planned, layout), block_costs(planned, method.layout(1, 1))
        symbols = {
            "P": planned.decoder.block_parameters,
            "T": BATCH * TOKENS * WIDTH,
            "g": max(kv_heads, layout.ulysses) / HEADS,
            "N": ranks,
            "U": layout.ulysses,
            "R": layout.ring,
        }
        assert costs.weights_sent == pytest.approx(4 * value(method.weights_volume, symbols))
        assert costs.activations_sent == 4 * value(method.activations_volume, symbols)
        parts = ("weights", "gradients", "optimizer")
        for part, held in zip(parts, method.held, strict=False):
            share = value(held, {"P": 1.0, "N": ranks})
            assert getattr(costs, part) == pytest.approx(share * getattr(whole, part))
        exchanged = 4 * symbols["T"] / ranks if layout.ulysses > 1 else 0.0
        if method.name != "TP":
            assert costs.activations - exchanged == pytest.approx(whole.activations / ranks)


def test_tensor_parallelism_alone_holds_the_norms_whole() -> None:
    planned = training(8)
    plain, split = (
        block_costs(planned, next(m for m in METHODS if m.name == name).layout(8, 1))
        for name in ("TP", "TP-sp")
    )
    norms = BATCH * TOKENS * (2 * 12 * WIDTH + 8)
    assert plain.activations - split.activations == pytest.approx(norms * 7 / 8)
