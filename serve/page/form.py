"""The page's form: presets, and the conversion between its fields and requests."""

from __future__ import annotations

import math
import secrets
from collections.abc import Sequence
from typing import Any

from longtake.configs.request import ResolvedRequest, VideoRequest
from longtake.pipelines.spec import ModelSpec

SETTINGS = {
    "num_inference_steps": "Steps",
    "guidance_scale": "Guidance",
    "flow_shift": "Flow shift",
    "true_cfg_scale": "True CFG scale",
    "fps": "Frame rate (fps)",
    "num_videos": "Number of videos",
    "negative_prompt": "Negative prompt",
}
"""Labels of the options under "More settings"."""

FIELDS = ("prompt", "size", "length", "seed", *SETTINGS)

_FIELD_OF_OPTION = {
    "width": "size",
    "height": "size",
    "seconds": "length",
    "num_frames": "length",
    "input_reference": "picture",
}
_FRAMES = "frames"
"""Unit of a length; without it, a length is in seconds."""
AS_THE_PICTURE = "as the picture"


class Form:
    """The form of one model.

    Args:
        spec: The model.
    """

    def __init__(self, spec: ModelSpec) -> None:
        self._spec = spec

    def sizes(self) -> list[tuple[str, str]]:
        """Choices of a size, the model's default first: label and ``WIDTHxHEIGHT``."""
        defaults = self._spec.defaults
        own = [size for sizes in defaults.sizes.values() for size in sizes]
        height, width = defaults.height, defaults.width
        side = math.sqrt(height * width)
        made = [(height, width), (width, height), (side, side), (height / 2, width / 2)]
        found = {}
        for high, wide in [*made[:1], *(own or made[1:])]:
            high, wide = self._round_size(high), self._round_size(wide)
            found[f"{wide}x{high}"] = f"{wide} × {high}{_orientation(wide, high)}"
        first = {AS_THE_PICTURE: AS_THE_PICTURE} if self._spec.image is not None else {}
        return [(shown, size) for size, shown in {**first, **found}.items()]

    def lengths(self) -> list[tuple[str, str]]:
        """Choices of a length: label and number of frames, as ``33 frames``."""
        most, multiple = self._spec.defaults.num_frames, self._spec.frames_multiple
        parts = {most, *((most - 1) * part // 4 // multiple * multiple + 1 for part in (1, 2, 3))}
        frames = sorted(count for count in parts if count > self._spec.dropped_frames)
        return [(self._length_label(count), f"{count} {_FRAMES}") for count in frames]

    @property
    def default_length(self) -> str:
        """The model's default length."""
        return f"{self._spec.defaults.num_frames} {_FRAMES}"

    def default(self, name: str) -> str:
        """The value of a setting that is left empty, as a text."""
        spec = self._spec
        known = {"flow_shift": spec.flow_shift, "negative_prompt": "what not to show"}
        own = getattr(spec.defaults, name, VideoRequest.model_fields[name].default)
        value = known.get(name, own)
        return value if isinstance(value, str) else f"{value:g}"

    def request(self, values: Sequence[Any]) -> dict[str, Any]:
        """The request that a client of the API would send.

        Args:
            values: Values of the fields in the order of ``FIELDS``; the last may be missing.
        """
        form = {**dict.fromkeys(FIELDS), **dict(zip(FIELDS, values, strict=False))}
        request: dict[str, Any] = {"prompt": form["prompt"] or ""}
        if form["size"] and form["size"] != AS_THE_PICTURE:
            request["size"] = str(form["size"]).replace(" ", "").replace("×", "x")
        if form["length"]:
            number, _, unit = str(form["length"]).strip().partition(" ")
            if unit == _FRAMES:
                request["num_frames"] = number
            else:
                request["seconds"] = number.removesuffix("s")
        for name in FIELDS[3:]:
            value = form[name].strip() if isinstance(form[name], str) else form[name]
            if value not in (None, ""):
                request[name] = value
        return request

    @staticmethod
    def field_of(param: str | None) -> str:
        """The field that shows an option of the API; empty if none does."""
        shown = _FIELD_OF_OPTION.get(param or "", param or "")
        return shown if shown in (*FIELDS, "picture") else ""

    @staticmethod
    def values(request: ResolvedRequest) -> list[Any]:
        """The values of the fields for a request, in the order of ``FIELDS``."""
        return [
            request.prompt,
            f"{request.width}x{request.height}",
            f"{request.num_frames} {_FRAMES}",
            str(request.seed),
            *(_field_text(getattr(request, name)) for name in SETTINGS),
        ]

    @staticmethod
    def drawn() -> str:
        """A random seed."""
        return str(secrets.randbits(32))

    def _round_size(self, pixels: float) -> int:
        multiple = self._spec.size_multiple
        return max(1, round(pixels / multiple)) * multiple

    def _length_label(self, frames: int) -> str:
        shown = frames - self._spec.dropped_frames
        return f"{shown / self._spec.defaults.fps:.1f} s ({shown} frames)"


def _orientation(width: int, height: int) -> str:
    if width == height:
        return ", square"
    return ", wide" if width > height else ", tall"


def _field_text(value: str | float | None) -> str:
    """A setting as the text of a field; a number keeps its precision."""
    if isinstance(value, float):
        return repr(value).removesuffix(".0")
    return "" if value is None else str(value)
