"""The scales that peft and diffusers write into a file's metadata, or beside it; without torch."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

from pydantic import AliasChoices, BaseModel, Field

from longtake.configs.field_types import matches
from longtake.errors import ModelError, one_line
from longtake.files.reading import read_json

_KEY = "lora_adapter_metadata"

_UNNAMED = "transformer."
"""What diffusers puts in front of a module that a file names without its component."""

Alpha = Annotated[float, Field(strict=True, ge=-1e6, le=1e6, allow_inf_nan=False)]
ModuleEnd = Annotated[str, matches(r"[\w.-]+", "the end of a module's name")]


class PeftConfig(BaseModel):
    """The fields of peft's LoraConfig that tell what changes are multiplied by.

    Attributes:
        lora_alpha: Alpha, which LoHa and LoKr call "alpha"; None is the rank.
        alpha_pattern: Alphas of their own, by the ends of modules' names. peft also takes regular
            expressions, which are refused here.
        use_rslora: Whether alpha is divided by the square root of the rank, not by the rank.
    """

    lora_alpha: Alpha | None = Field(None, validation_alias=AliasChoices("lora_alpha", "alpha"))
    alpha_pattern: dict[ModuleEnd, Alpha] = Field(default_factory=dict)
    use_rslora: bool = False


@dataclass(frozen=True)
class PeftScales:
    """Configurations of adapters.

    Attributes:
        configs: By what the names of their modules begin with, such as "transformer."; empty is all
            of them.
    """

    configs: Mapping[str, PeftConfig] = field(default_factory=dict)

    @classmethod
    def read(cls, metadata: Mapping[str, str], path: Path) -> PeftScales:
        """Read what the metadata of a file say.

        Args:
            metadata: The metadata.
            path: Path of the file, for the error.

        Raises:
            ModelError: They hold no configuration of peft's.
        """
        if _KEY not in metadata:
            return cls()
        fields: dict[str, dict[str, object]] = {}
        try:
            for key, value in json.loads(metadata[_KEY]).items():
                component, dot, name = key.rpartition(".")
                fields.setdefault(component + dot, {})[name] = value
            return cls({start: PeftConfig.model_validate(each) for start, each in fields.items()})
        except (AttributeError, ValueError, RecursionError) as error:
            raise ModelError(
                f"{path} has {_KEY} that cannot be read ({one_line(error)[:150]}), so its scale is "
                "unknown: save the LoRA again"
            ) from error

    @classmethod
    def beside(cls, path: Path) -> PeftScales | None:
        """Read what peft saves beside a file of its own; None if there is nothing.

        Args:
            path: The file.

        Raises:
            ModelError: It cannot be read, or is no configuration of peft's.
        """
        config = path.with_name("adapter_config.json")
        if path.name != "adapter_model.safetensors" or not os.path.lexists(config):
            return None
        try:
            return cls({"": PeftConfig.model_validate(read_json(config))})
        except (OSError, ValueError) as error:
            raise ModelError(
                f"{config} cannot be read ({one_line(error)[:150]}), so the scale of {path.name} "
                "is unknown: save the LoRA again"
            ) from error

    def factor(self, module: str, rank: int) -> float:
        """What a module's change of a rank is multiplied by; 1 if nothing says so.

        Args:
            module: Name of the module, as the file spells it.
            rank: Rank of the change.
        """
        starts = [start for start in self.configs if module.startswith(start)]
        config = self.configs.get(max(starts, key=len, default=_UNNAMED))
        if config is None:
            return 1.0
        parts = module.split(".")
        ends = [".".join(parts[begin:]) for begin in range(len(parts))]
        own = [config.alpha_pattern[end] for end in ends if end in config.alpha_pattern]
        alpha = own[0] if own else config.lora_alpha
        if alpha is None:
            return 1.0
        return alpha / (math.sqrt(rank) if config.use_rslora else rank)
