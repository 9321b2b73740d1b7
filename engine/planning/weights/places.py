"""Where weights live in a plan: a place for the transformer, and one for the text encoders."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import get_args

from longtake.configs.engine import EngineConfig
from longtake.configs.fields.weights import TextPlace, WeightPlace

WEIGHT_PLACES: tuple[WeightPlace, ...] = ("resident", "streamed", "split", "disk")
"""Places of a transformer in the order in which ties are broken."""

TEXT_PLACES: tuple[TextPlace, ...] = get_args(TextPlace)
"""Places of text encoders."""


def fastest_text_first(places: Sequence[TextPlace], *, one_memory: bool) -> list[TextPlace]:
    """Places of text encoders in the order of the time that encoding takes.

    A device with a memory of its own gets each layer once, while another one computes; whole
    encoders come before they compute, and return.

    Args:
        places: Places to order.
        one_memory: Whether ranks compute in the memory of their host.
    """
    order = ("resident", "streamed", "disk") if one_memory else ("streamed", "resident", "disk")
    return sorted(places, key=order.index)


@dataclass(frozen=True)
class Placement:
    """Where the weights of one plan live.

    Attributes:
        weights: Place of the transformer.
        text: Place of the text encoders.
    """

    weights: WeightPlace = "resident"
    text: TextPlace = "resident"

    @property
    def streams(self) -> bool:
        """Whether blocks pass through two slots on the device."""
        return self.weights in ("streamed", "disk")

    @property
    def mark(self) -> str:
        """What a layout's name says of the transformer's place; empty if it is resident."""
        return "" if self.weights == "resident" else f" +{self.weights}"

    @property
    def description(self) -> str:
        """Both places in words."""
        return f"{self.weights} weights and {self.text} text encoders"

    @property
    def preference(self) -> int:
        """Rank among plans that are equally fast; the lowest is taken."""
        return WEIGHT_PLACES.index(self.weights)


@dataclass(frozen=True)
class Places:
    """The places that a plan may choose from.

    Attributes:
        weights: Places of the transformer, in order of preference.
        text: Places of the text encoders, of which the fastest that fits is taken.
    """

    weights: tuple[WeightPlace, ...] = WEIGHT_PLACES
    text: tuple[TextPlace, ...] = TEXT_PLACES

    @classmethod
    def of(cls, config: EngineConfig, devices: int | None = None) -> Places:
        """The places that a configuration allows.

        Args:
            config: The configuration; "auto" allows every place.
            devices: Number of ranks; that of the configuration if None.
        """
        weights = WEIGHT_PLACES if config.weights == "auto" else (config.weights,)
        text = TEXT_PLACES if config.text_weights == "auto" else (config.text_weights,)
        return cls(weights, text).on(config.devices if devices is None else devices)

    @classmethod
    def only(cls, placement: Placement) -> Places:
        """One placement."""
        return cls((placement.weights,), (placement.text,))

    def on(self, devices: int) -> Places:
        """These places on a number of ranks: one rank splits nothing."""
        if devices > 1 or "split" not in self.weights:
            return self
        others = tuple(place for place in self.weights if place != "split")
        return Places(others or ("resident",), self.text)
