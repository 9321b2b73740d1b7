"""Where the components of a model live, and in which dtype: decided before anything is loaded."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch

Place = Literal["resident", "split"]
"""``resident``: whole on every rank that computes with the component. ``split``: over all ranks."""


@dataclass(frozen=True)
class ComponentPlan:
    """How one component is loaded.

    Attributes:
        dtype: Dtype of its weights, except for those that the family keeps in float32.
        place: Where its weights live.
    """

    dtype: torch.dtype
    place: Place = "resident"


@dataclass(frozen=True)
class LoadPlan:
    """How a model is loaded; the same on all ranks.

    Attributes:
        transformer: The transformer or, with several experts, each of them.
        text_encoders: All encoders of prompts and pictures. Resident: rank 0 alone holds them.
        autoencoder: The autoencoder. Resident: every rank decodes tiles of its own.
        kernel: Name of the local attention kernel.

    Raises:
        ValueError: Another component than the transformer is split.
    """

    transformer: ComponentPlan
    text_encoders: ComponentPlan
    autoencoder: ComponentPlan
    kernel: str = "auto"

    def __post_init__(self) -> None:
        for name in ("text_encoders", "autoencoder"):
            place = getattr(self, name).place
            if place != "resident":
                raise ValueError(f"{name} cannot be {place}, only the transformer: use resident")

    @classmethod
    def resident(cls, dtype: torch.dtype) -> LoadPlan:
        """Plan all components whole and in one dtype."""
        whole = ComponentPlan(dtype)
        return cls(whole, whole, whole)
