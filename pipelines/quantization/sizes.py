"""Sizes of weights in fewer bits; without torch."""

from __future__ import annotations

import math

from longtake.configs.fields.weights import StorageDtype

Storage = StorageDtype | float
"""How weights are stored in fewer bits: the type that they are encoded in, or the mean bytes of a
value in a GGUF file, whose tensors are of several types."""

NF4_GROUP = 64
"""Values of a row that share a scale in nf4, as in QLoRA (arXiv 2305.14314)."""

_SCALE_BYTES = 4


def code_bytes(num_columns: int, storage: StorageDtype) -> int:
    """Bytes of the codes of one row: a byte a value, or half of one."""
    return -(-num_columns // 2) if storage == "nf4" else num_columns


def num_scales(num_columns: int, storage: StorageDtype) -> int:
    """Scales of one row."""
    return -(-num_columns // NF4_GROUP) if storage == "nf4" else 1


def stored_bytes(num_rows: int, num_columns: int, storage: Storage) -> int:
    """Bytes of a weight's codes and scales."""
    if not isinstance(storage, str):
        return math.ceil(num_rows * num_columns * storage)
    scales = num_scales(num_columns, storage) * _SCALE_BYTES
    return num_rows * (code_bytes(num_columns, storage) + scales)
