"""Where a model's weights live, and in which type they are stored."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import TypeAdapter, ValidationError

TextPlace = Literal["resident", "streamed", "disk"]
"""Places of text encoders: whole on the device while they encode; layer by layer from host memory;
layer by layer from their files."""

WeightPlace = Literal["resident", "streamed", "disk", "split"]
"""Places of a transformer: whole on every device; block by block from host memory; block by block
from its files; split over all ranks (FSDP2)."""

StorageDtype = Literal["float8", "int8", "nf4"]
"""Types of fewer bits that weights are encoded in. They are lossy."""

WeightStorage = Literal["float8", "int8", "nf4", "gguf"]
"""What weights are stored as instead of the dtype of compute; "gguf" is what the transformer's GGUF
file has, which loses nothing of the file."""


def place_of_shard_weights(value: Any) -> Literal["auto", "split"]:
    """What ``shard_weights`` of longtake 0.1.0 stands for: split weights, or those not asked for.

    Args:
        value: True or False, or either as text.

    Raises:
        ValueError: It is neither.
    """
    try:
        return "split" if TypeAdapter(bool).validate_python(value) else "auto"
    except ValidationError:
        raise ValueError(f"shard_weights={value!r} must be true or false") from None
