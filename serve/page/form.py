"""The page's form: presets, and its fields as a request and back."""

from __future__ import annotations

import math
import secrets
from collections.abc import Sequence
from typing import Any

from longtake.configs.request import ResolvedRequest, VideoRequest
from longtake.engine.engine import VideoEngine

SETTINGS = {
    "num_inference_steps": "Steps",
    "guidance_scale": "Guidance",
    "flow_shift": "Flow shift",
    "true_cfg_scale": "True CFG scale",
    "fps": "Frame rate (fps)",
    "num_videos": "Number of videos",
    "negative_prompt": "Negative prompt",
}
"""What the page calls those options that it shows when asked for more."""

FIELDS = ("prompt", "size", "length", "seed", *SETTINGS)

_SHOWN_AS = {
    "width": "size",
    "height": "size",
    "seconds": "length",
    "num_frames": "length",
    "input_reference": "picture",
}
_FRAMES = "frames"
"""What tells a number of them from seconds."""
AS_THE_PICTURE = "as the picture"


class Form:
    """The form of one model.

    Args:
        engine: of it.
    """

    def __init__(self, engine: VideoEngine) -> None:
        self._spec = engine.spec

    def sizes(self) -> list[tuple[str, str]]:
        """Sizes to choose from, the model's own first: what is shown, and WIDTHxHEIGHT."""
        defaults = self._spec.defaults
        own = [size for sizes in defaults.sizes.values() for size in sizes]
        height, width = defaults.height, defaults.width
        side = math.sqrt(height * width)
        made = [(height, width), (width, height), (side, side), (height / 2, width / 2)]
        found = {}
        for high, wide in [*made[:1], *(own or made[1:])]:
            high, wide = self._near(high), self._near(wide)
            found[f"{wide}x{high}"] = f"{wide} × {high}{_shape(wide, high)}"
        first = {AS_THE_PICTURE: AS_THE_PICTURE} if self._spec.image is not None else {}
        return [(shown, size) for size, shown in {**first, **found}.items()]

    def lengths(self) -> list[tuple[str, str]]:
        """Lengths to choose from: what is shown, and so many frames."""
        most, multiple = self._spec.defaults.num_frames, self._spec.frames_multiple
        parts = {most, *((most - 1) * part // 4 // multiple * multiple + 1 for part in (1, 2, 3))}
        frames = sorted(count for count in parts if count > self._spec.dropped_frames)
        return [(self._seconds(count), f"{count} {_FRAMES}") for count in frames]

    @property
    def default_length(self) -> str:
        """The model's own."""
        return f"{self._spec.defaults.num_frames} {_FRAMES}"

    def default(self, name: str) -> str:
        """What a setting is if it is left out, in words."""
        spec = self._spec
        known = {"flow_shift": spec.flow_shift, "negative_prompt": "what not to show"}
        own = getattr(spec.defaults, name, VideoRequest.model_fields[name].default)
        value = known.get(name, own)
        return value if isinstance(value, str) else f"{value:g}"

    def request(self, values: Sequence[Any]) -> dict[str, Any]:
        """The fields of a form, in its order, as a client of the API would send them; those at its
        end may be left out."""
        form = {**dict.fromkeys(FIELDS), **dict(zip(FIELDS, values, strict=False))}
        asked: dict[str, Any] = {"prompt": form["prompt"] or ""}
        if form["size"] and form["size"] != AS_THE_PICTURE:
            asked["size"] = str(form["size"]).replace(" ", "").replace("×", "x")
        if form["length"]:
            number, _, unit = str(form["length"]).strip().partition(" ")
            if unit == _FRAMES:
                asked["num_frames"] = number
            else:
                asked["seconds"] = number.removesuffix("s")
        for name in FIELDS[3:]:
            value = form[name].strip() if isinstance(form[name], str) else form[name]
            if value not in (None, ""):
                asked[name] = value
        return asked

    @staticmethod
    def field_of(param: str | None) -> str:
        """The field that shows an option of a request; empty if none does."""
        shown = _SHOWN_AS.get(param or "", param or "")
        return shown if shown in (*FIELDS, "picture") else ""

    @staticmethod
    def values(request: ResolvedRequest) -> list[Any]:
        """The fields of a request, in the form's order."""
        return [
            request.prompt,
            f"{request.width}x{request.height}",
            f"{request.num_frames} {_FRAMES}",
            str(request.seed),
            *(_shown(getattr(request, name)) for name in SETTINGS),
        ]

    @staticmethod
    def drawn() -> str:
        """A seed."""
        return str(secrets.randbits(32))

    def _near(self, pixels: float) -> int:
        multiple = self._spec.size_multiple
        return max(1, round(pixels / multiple)) * multiple

    def _seconds(self, frames: int) -> str:
        shown = frames - self._spec.dropped_frames
        return f"{shown / self._spec.defaults.fps:.1f} s ({shown} frames)"


def _shape(width: int, height: int) -> str:
    if width == height:
        return ", square"
    return ", wide" if width > height else ", tall"


def _shown(value: str | float | None) -> str:
    """A setting as it is written in a field; a number as exactly as it is known."""
    if isinstance(value, float):
        return repr(value).removesuffix(".0")
    return "" if value is None else str(value)
