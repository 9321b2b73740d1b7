"""Which LoRAs a request renders with, as ranks receive it."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict

from longtake.configs.request import Rendering

LORAS_STAGE = "loras"
"""Stage of a rendering in which the LoRAs of the job before it are exchanged."""


class LoraChoice(BaseModel):
    """Which LoRAs a request renders with. Equal choices give equal weights.

    Attributes:
        uses: ``FILE:SCALE@COMPONENT`` of each LoRA, in the order of their application.
        sha256: Digests of their files; empty before they were read.
        partial: Whether tensors of a LoRA may fit nothing in the model.
    """

    model_config = ConfigDict(frozen=True)

    uses: tuple[str, ...] = ()
    sha256: tuple[str, ...] = ()
    partial: bool = False

    @classmethod
    def of(cls, request: Rendering) -> LoraChoice:
        """The choice of a request; of none without LoRAs."""
        if not request.lora:
            return NO_LORAS
        return cls(
            uses=request.lora, sha256=request.lora_sha256 or (), partial=request.lora_partial
        )


NO_LORAS = LoraChoice()
"""The model as it is in its files."""
