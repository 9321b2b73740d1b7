"""Types of the tensors in GGUF files; without torch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple


class BlockType(NamedTuple):
    """A type that holds a fixed number of values, next to each other in a row, in one block.

    Attributes:
        num_values: Values of a block.
        num_bytes: Bytes of a block: codes of the values, and what scales them.
    """

    num_values: int
    num_bytes: int


BLOCK_TYPES: Mapping[str, BlockType] = {
    "Q4_0": BlockType(32, 18),
    "Q4_1": BlockType(32, 20),
    "Q5_0": BlockType(32, 22),
    "Q5_1": BlockType(32, 24),
    "Q8_0": BlockType(32, 34),
    "Q2_K": BlockType(256, 84),
    "Q3_K": BlockType(256, 110),
    "Q4_K": BlockType(256, 144),
    "Q5_K": BlockType(256, 176),
    "Q6_K": BlockType(256, 210),
    "IQ4_NL": BlockType(32, 18),
    "IQ4_XS": BlockType(256, 136),
}
"""Block types that are read, by name."""

PLAIN_BYTES: Mapping[str, int] = {
    "F64": 8,
    "F32": 4,
    "F16": 2,
    "BF16": 2,
    "I64": 8,
    "I32": 4,
    "I16": 2,
    "I8": 1,
}
"""Bytes of a value of the types without blocks, which safetensors has under the same names."""

TYPE_NAMES: Mapping[int, str] = {
    **{0: "F32", 1: "F16", 24: "I8", 25: "I16", 26: "I32", 27: "I64", 28: "F64", 30: "BF16"},
    **{2: "Q4_0", 3: "Q4_1", 6: "Q5_0", 7: "Q5_1", 8: "Q8_0"},
    **{10: "Q2_K", 11: "Q3_K", 12: "Q4_K", 13: "Q5_K", 14: "Q6_K", 20: "IQ4_NL", 23: "IQ4_XS"},
}
"""Names of the types by their numbers in ggml.h (``enum ggml_type``)."""


def tensor_bytes(num_values: int, name: str) -> int:
    """Bytes of so many values, which fill whole blocks."""
    if name in PLAIN_BYTES:
        return num_values * PLAIN_BYTES[name]
    block = BLOCK_TYPES[name]
    return num_values // block.num_values * block.num_bytes
