"""LoRAs as a user names them: ``FILE[:SCALE][@COMPONENT]``."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import Annotated

from pydantic import AfterValidator, Field

_MAX_LENGTH, _MAX_SCALE = 4096, 1000.0
_SCALE, _COMPONENT = r":([^:@/\\]*)", r"@(\w+)"
_PATTERN = re.compile(rf"(.+?)(?:{_SCALE})?(?:{_COMPONENT})?", re.DOTALL)
_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)(e[+-]?\d+)?", re.ASCII | re.IGNORECASE)
_OTHER_ORDER = re.compile(rf"(.+?){_COMPONENT}{_SCALE}", re.DOTALL)


@dataclass(frozen=True)
class LoraUse:
    """A LoRA and how much of it is applied to what.

    Attributes:
        file: Path of its file, or its name in the server's folder.
        scale: Factor of what it changes; 0 changes nothing, and a negative one the opposite.
        component: Transformer that it is applied to, such as "transformer_2"; None is the one that
            the file names, or the only one.
    """

    file: str
    scale: float = 1.0
    component: str | None = None

    def __str__(self) -> str:
        """The text that :func:`parse_lora` reads."""
        return self.scaled(repr(self.scale))

    @property
    def at_scale_1(self) -> str:
        """The shortest text that names the file and the component."""
        if ":" in self.file:
            return self.scaled("1")
        return f"{self.file}{self._component_text}"

    def scaled(self, scale: str) -> str:
        """The text that names the file and the component with a scale, which is not checked."""
        return f"{self.file}:{scale}{self._component_text}"

    @property
    def _component_text(self) -> str:
        return "" if self.component is None else f"@{self.component}"


def parse_lora(text: str) -> LoraUse:
    """Read ``FILE[:SCALE][@COMPONENT]``, or the scale behind the component.

    A file whose own name has a colon is written with a scale: ``a:b.safetensors:1``.

    Raises:
        ValueError: There is no file, or the scale is no number from -1000 to 1000.
    """
    if found := _OTHER_ORDER.fullmatch(text):
        file, component, scale = found.groups()
    elif found := _PATTERN.fullmatch(text):
        file, scale, component = found.groups()
    else:
        raise ValueError("must be written as FILE[:SCALE][@COMPONENT]")
    return LoraUse(file, 1.0 if scale is None else _number(scale), component)


def _number(text: str) -> float:
    number = float(text) if _NUMBER.fullmatch(text) else math.nan
    if not abs(number) <= _MAX_SCALE:
        raise ValueError(
            f"must have a number from {-_MAX_SCALE:g} to {_MAX_SCALE:g} behind its last colon, as "
            "in FILE:0.8"
        )
    return number


def _check(text: str) -> str:
    if not text.isprintable():
        raise ValueError("must be a printable name in UTF-8: rename the file")
    parse_lora(text)
    return text


LoraText = Annotated[str, Field(max_length=_MAX_LENGTH), AfterValidator(_check)]
"""A LoRA of a request, as in :func:`parse_lora`."""
