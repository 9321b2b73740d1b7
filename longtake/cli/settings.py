"""What the flags of a command say, checked where it is declared."""

from __future__ import annotations

from typing import Any

from longtake.cli.prompts import with_prompts
from longtake.configs.engine import EngineConfig
from longtake.configs.parallel import ParallelConfig

_COMMAND_LINE_ONLY = ("config", "output", "metadata", "quiet", "json", "latents")


def flags(options: dict[str, Any]) -> dict[str, Any]:
    """The options that were given and that a config file could hold."""
    return {
        name: value
        for name, value in with_prompts(options).items()
        if value is not None and name not in _COMMAND_LINE_ONLY
    }


def engine_config(values: dict[str, Any]) -> EngineConfig:
    """The engine that options ask for."""
    degrees = {n: values.pop(n) for n in list(values) if n in ParallelConfig.model_fields}
    return EngineConfig(**{**values, "parallel": ParallelConfig(**degrees)})
