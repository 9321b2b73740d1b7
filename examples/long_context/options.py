"""The command line of train.py: every option is declared once, as a field."""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NoReturn, get_args

from examples.long_context.layout import Layout
from longtake.errors import RequestError
from longtake.parallel import TokenShards

Zero = Literal[2, 3]
Recompute = Literal["nothing", "all", "all-but-attention"]
DType = Literal["float32", "bfloat16"]


def _option(help: str, default: Any, **keywords: Any) -> Any:
    """A field that is a command line option of the same name."""
    keywords = {"type": type(default), **keywords, "help": f"{help}; default: {default}"}
    return dataclasses.field(default=default, metadata=keywords)


@dataclass(frozen=True)
class Options:
    """What train.py is asked to do.

    Raises:
        RequestError: A value is out of range, or does not fit another.
    """

    text: Path = dataclasses.field(
        metadata={"type": Path, "required": True, "help": "file whose bytes are the tokens"}
    )
    layout: Layout = _option("DPxRINGxULYSSESxTP", Layout(), type=str)
    num_tokens: int = _option("tokens of a sequence", 1024)
    batch_size: int = _option("sequences of a step, of all ranks together", 1)
    accumulation: int = _option("passes that a step is split into", 1)
    packed: bool = _option(
        "an empty line ends a document, and documents do not see each other",
        False,
        action=argparse.BooleanOptionalAction,
    )
    steps: int = _option("steps, counted from the first run", 20)
    learning_rate: float = _option("AdamW's learning rate", 1e-3)
    clip_norm: float = _option("largest norm of a gradient", 1.0)
    layers: int = _option("layers of the model", 4)
    width: int = _option("features of a token", 256)
    heads: int = _option("query heads of a layer", 8)
    kv_heads: int = _option("KV heads of a layer", 4)
    seed: int = _option("seed of the weights and the batches", 0)
    zero: Zero = _option("stage of ZeRO", 3, choices=get_args(Zero))
    recompute: Recompute = _option(
        "what the backward pass computes again", "nothing", choices=get_args(Recompute)
    )
    dtype: DType = _option("type of activations", "float32", choices=get_args(DType))
    checkpoints: Path | None = _option(
        "folder that all nodes see, to write to and to continue from", None, type=Path
    )
    checkpoint_every: int = _option("steps between checkpoints; the last is written too", 100)

    @classmethod
    def parse(cls, words: Sequence[str] | None = None) -> Options:
        """Read a command line, by default this process's."""
        parser = _OneLineParser(description="Train a LLaMA on long sequences.", allow_abbrev=False)
        for field in dataclasses.fields(cls):
            keywords = {"default": field.default, **field.metadata}
            if "action" in keywords:
                del keywords["type"]
            parser.add_argument("--" + field.name.replace("_", "-"), **keywords)
        values = vars(parser.parse_args(words))
        if isinstance(values["layout"], str):
            values["layout"] = Layout.parse(values["layout"])
        return cls(**values)

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            lowest = 0 if field.name == "seed" else 1
            if field.type == "int" and not lowest <= value < 2**63:
                raise RequestError(f"{field.name}={value} must be at least {lowest}, below 2**63")
            if field.type == "float" and not 0 < value < 1e30:
                raise RequestError(f"{field.name}={value} must be a number above 0, below 1e30")
        parts = self.layout.dp * self.accumulation
        if self.batch_size % parts:
            raise RequestError(
                f"batch_size={self.batch_size} must be a multiple of dp={self.layout.dp} x "
                f"accumulation={self.accumulation}: try --batch-size {parts}"
            )
        if self.packed and self.batch_size != parts:
            raise RequestError(
                f"batch_size={self.batch_size} with packed documents, which end at different "
                f"tokens in each sequence, needs a pass for each: try --accumulation "
                f"{self.batch_size // self.layout.dp}"
            )
        self._check_tokens()
        self._check_files()

    def _check_tokens(self) -> None:
        if self.num_tokens < 2:
            raise RequestError("num_tokens=1 leaves nothing to predict: try --num-tokens 1024")
        counts = TokenShards.zigzag(self.num_tokens, self.layout.sequence).counts
        if 0 in counts:
            raise RequestError(
                f"num_tokens={self.num_tokens} leaves some of the {len(counts)} ranks of a "
                f"sequence without a token, which transformers cannot take: try --num-tokens "
                f"{2 * len(counts)}"
            )

    def _check_files(self) -> None:
        if self.checkpoints and self.checkpoints.exists() and not self.checkpoints.is_dir():
            raise RequestError(f"checkpoints={str(self.checkpoints)!r} is no folder: name another")
        if not self.text.is_file():
            raise RequestError(
                f"text={str(self.text)!r} is no file: make one with "
                f"python -m examples.long_context.text {self.text}"
            )
        if self.text.stat().st_size < self.num_tokens:
            raise RequestError(
                f"text={str(self.text)!r} has {self.text.stat().st_size} bytes, fewer than "
                f"num_tokens={self.num_tokens}: make a longer one, or lower --num-tokens"
            )

    @property
    def sizes(self) -> tuple[int, int, int, int]:
        """Layers, width, heads and KV heads of the model."""
        return self.layers, self.width, self.heads, self.kv_heads

    @property
    def run(self) -> dict[str, Any]:
        """What determines the weights, beside the number of steps."""
        names = (
            *("num_tokens", "batch_size", "packed", "learning_rate", "clip_norm", "dtype"),
            *("layers", "width", "heads", "kv_heads", "seed"),
        )
        values = {name: getattr(self, name) for name in names}
        return {"text_bytes": self.text.stat().st_size, **values}

    def is_saved(self, steps: int) -> bool:
        """Whether a checkpoint is written after this number of steps."""
        return steps == self.steps or steps % self.checkpoint_every == 0


class _OneLineParser(argparse.ArgumentParser):
    """A parser that raises errors, which argparse prints below the usage of all options."""

    def error(self, message: str) -> NoReturn:
        raise RequestError(message)
