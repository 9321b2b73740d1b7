"""Where weights live in a plan: a place for the transformer, and one for the text encoders."""

from __future__ import annotations

from dataclasses import dataclass
from typing import get_args

from longtake.configs.engine import EngineConfig
from longtake.configs.weights import StorageDtype, TextPlace, WeightPlace
from longtake.errors import RequestError

WEIGHT_PLACES: tuple[WeightPlace, ...] = ("resident", "split", "streamed", "disk")
"""Places of a transformer in the order in which ties are broken."""

TEXT_PLACES: tuple[TextPlace, ...] = get_args(TextPlace)
"""Places of text encoders, the fastest first."""

_WHOLE_ONLY: tuple[StorageDtype, ...] = ("int8", "nf4")
"""Storage types of libraries, whose tensors can be neither streamed nor split."""


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
        text: Places of the text encoders, in order of preference.
    """

    weights: tuple[WeightPlace, ...] = WEIGHT_PLACES
    text: tuple[TextPlace, ...] = TEXT_PLACES

    @classmethod
    def of(cls, config: EngineConfig, devices: int | None = None) -> Places:
        """The places that a configuration allows.

        Args:
            config: The configuration; "auto" allows every place.
            devices: Number of ranks; that of the configuration if None.

        Raises:
            RequestError: The storage type cannot be combined with the requested place.
        """
        weights = WEIGHT_PLACES if config.weights == "auto" else (config.weights,)
        text = TEXT_PLACES if config.text_weights == "auto" else (config.text_weights,)
        places = cls(weights, text).on(config.devices if devices is None else devices)
        return places.storing(config.storage_dtype)

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

    def storing(self, storage: StorageDtype | None) -> Places:
        """Those of these places that a storage type can be combined with.

        Raises:
            RequestError: There is none.
        """
        if storage not in _WHOLE_ONLY:
            return self
        if "resident" not in self.weights:
            raise RequestError(
                f"storage_dtype={storage} with weights={self.weights[0]}: {storage} weights are "
                "whole on every rank: use weights=resident, or storage_dtype=float8"
            )
        return Places(("resident",), self.text)
