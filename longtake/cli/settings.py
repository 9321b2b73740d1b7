"""Builds the objects that configs/ declares from parsed options."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel

from longtake.cli.prompts import read_prompts
from longtake.configs.engine import EngineConfig
from longtake.configs.parallel import ParallelConfig

_COMMAND_LINE_ONLY = ("config", "output", "metadata", "quiet", "json", "latents")


def given_values(options: dict[str, Any]) -> dict[str, Any]:
    """The options that were given and that a config file could set, with prompts read in."""
    return {
        name: value
        for name, value in read_prompts(options).items()
        if value is not None and name not in _COMMAND_LINE_ONLY
    }


def pop_fields(values: dict[str, Any], kind: type[BaseModel]) -> dict[str, Any]:
    """Remove the fields of a class from the values, and return them."""
    return {name: values.pop(name) for name in list(values) if name in kind.model_fields}


def engine_config(values: dict[str, Any]) -> EngineConfig:
    """The engine's configuration, from values that hold the parallel degrees at the same level.

    Raises:
        RequestError: A value is invalid or unknown.
    """
    others = dict(values)
    degrees = pop_fields(others, ParallelConfig)
    return EngineConfig(**{**others, "parallel": ParallelConfig(**degrees)})
