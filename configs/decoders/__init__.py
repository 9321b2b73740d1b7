"""Shapes of decoders for the training planner, in the keys of a transformers config.json."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from longtake.errors import RequestError, did_you_mean, one_line
from longtake.files.reading import read_json

Size = Annotated[int, Field(ge=1, le=10_000_000)]


class DecoderConfig(BaseModel):
    """The shape of a decoder of LLaMA's type: RMSNorm, RoPE, and a gated MLP of three matrices.

    Keys of the file that do not change the shape are ignored.

    Attributes:
        hidden_size: Width of the residual stream.
        intermediate_size: Width of the MLP.
        num_hidden_layers: Number of blocks.
        num_attention_heads: Query heads.
        num_key_value_heads: KV heads; as many as query heads by default.
        head_dim: Elements of one head; ``hidden_size / num_attention_heads`` by default.
        vocab_size: Tokens of the vocabulary.
        tie_word_embeddings: Whether the output layer shares the embedding's weights.
    """

    model_config = ConfigDict(frozen=True, extra="ignore")

    model_type: Literal["llama", "mistral", "qwen2", "qwen3"] = "llama"
    hidden_size: Size
    intermediate_size: Size
    num_hidden_layers: Size
    num_attention_heads: Size
    num_key_value_heads: Size
    head_dim: Size
    vocab_size: Size
    tie_word_embeddings: bool = False

    @model_validator(mode="before")
    @classmethod
    def _fill_in(cls, values: Any) -> Any:
        """Derive the keys that older files leave out."""
        if not isinstance(values, dict):
            raise ValueError("must be a JSON object")
        filled, heads = dict(values), values.get("num_attention_heads")
        if filled.get("num_key_value_heads") is None:
            filled["num_key_value_heads"] = heads
        width = values.get("hidden_size")
        if filled.get("head_dim") is None and isinstance(heads, int) and isinstance(width, int):
            if heads < 1 or width % heads:
                raise ValueError(
                    f"hidden_size={width} is not a multiple of num_attention_heads={heads}: "
                    "give head_dim"
                )
            filled["head_dim"] = width // heads
        return filled

    @model_validator(mode="after")
    def _whole_groups(self) -> DecoderConfig:
        if self.num_attention_heads % self.num_key_value_heads:
            raise ValueError(
                f"num_attention_heads={self.num_attention_heads} is not a multiple of "
                f"num_key_value_heads={self.num_key_value_heads}"
            )
        return self


def decoders() -> list[str]:
    """Names of the bundled decoders."""
    return sorted(path.stem for path in Path(__file__).parent.glob("*.json"))


def load_decoder(name: str) -> DecoderConfig:
    """Load a bundled shape by name, or the config.json of a transformers model.

    Args:
        name: A bundled name, a config.json, or a folder that holds one.

    Raises:
        RequestError: The name is unknown, or the file cannot be read or is no such decoder.
    """
    path = Path(os.path.expanduser(name))
    if name.lower() in decoders():
        path = Path(__file__).parent / f"{name.lower()}.json"
    elif path.is_dir():
        path = path / "config.json"
    elif path.suffix != ".json":
        suggestion = did_you_mean(name, decoders())
        raise RequestError(
            f"model={name!r} is no decoder that can be planned{suggestion}: use "
            f"{', '.join(decoders())}, or the config.json of a transformers model"
        )
    try:
        return DecoderConfig.model_validate(read_json(path))
    except OSError as error:
        raise RequestError(f"model={name!r} cannot be read: {error.strerror}") from error
    except ValidationError as error:
        raise RequestError(
            f"model={name!r} is no decoder of LLaMA's type: {one_line(error)}"
        ) from error
    except ValueError as error:
        raise RequestError(f"model={name!r} is not a config.json: {one_line(error)}") from error
