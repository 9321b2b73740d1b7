"""The page's form: its choices, and the conversion between its fields and requests."""

from __future__ import annotations

import math
import secrets
from collections.abc import Sequence
from typing import Any

from pydantic.fields import FieldInfo

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
"""Unit of a length in frames. A length without a unit is in seconds."""
AS_THE_PICTURE = "as the picture"


class Form:
    """The form of one model.

    Args:
        spec: Spec of the model.
    """

    def __init__(self, spec: ModelSpec) -> None:
        self._spec = spec

    def sizes(self) -> list[tuple[str, str]]:
        """Choices of the size, as pairs of a label and ``WIDTHxHEIGHT``.

        The size of the picture comes first if the model takes one, then the model's default.
        """
        defaults = self._spec.defaults
        height, width = defaults.height, defaults.width
        side = math.sqrt(height * width)
        trained = [size for sizes in defaults.sizes.values() for size in sizes]
        derived = [(width, height), (side, side), (height / 2, width / 2)]
        labels = {}
        if self._spec.pictures:
            labels[AS_THE_PICTURE] = AS_THE_PICTURE
        for high, wide in [(height, width), *(trained or derived)]:
            high, wide = self._round_size(high), self._round_size(wide)
            labels[f"{wide}x{high}"] = f"{wide} × {high}{_orientation(wide, high)}"
        return [(label, size) for size, label in labels.items()]

    def lengths(self) -> list[tuple[str, str]]:
        """Choices of the length, as pairs of a label and a value such as ``33 frames``."""
        default, multiple = self._spec.defaults.num_frames, self._spec.frames_multiple
        quarters = ((default - 1) * part // 4 // multiple * multiple + 1 for part in (1, 2, 3))
        frames = sorted(n for n in {default, *quarters} if n > self._spec.dropped_frames)
        return [(self._length_label(count), f"{count} {_FRAMES}") for count in frames]

    @property
    def default_length(self) -> str:
        """The model's default length."""
        return f"{self._spec.defaults.num_frames} {_FRAMES}"

    def default(self, name: str) -> str:
        """The default of a setting, as text."""
        spec = self._spec
        special = {"flow_shift": spec.flow_shift, "negative_prompt": "what not to show"}
        default = getattr(spec.defaults, name, VideoRequest.model_fields[name].default)
        value = special.get(name, default)
        return value if isinstance(value, str) else f"{value:g}"

    def request(self, values: Sequence[Any]) -> dict[str, Any]:
        """The fields of the equivalent API request. Empty fields are left out.

        Args:
            values: Values of the form in the order of ``FIELDS``; trailing ones may be missing.
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
        """The field of the form for an option of the API; empty if there is none."""
        field = _FIELD_OF_OPTION.get(param or "", param or "")
        return field if field in (*FIELDS, "picture") else ""

    @staticmethod
    def values(request: ResolvedRequest) -> list[Any]:
        """The values of the form for a request, in the order of ``FIELDS``."""
        return [
            request.prompt,
            f"{request.width}x{request.height}",
            f"{request.num_frames} {_FRAMES}",
            str(request.seed),
            *(_field_text(getattr(request, name)) for name in SETTINGS),
        ]

    @staticmethod
    def random_seed() -> str:
        """A random seed, as text."""
        return str(secrets.randbits(32))

    def _round_size(self, pixels: float) -> int:
        multiple = self._spec.size_multiple
        return max(1, round(pixels / multiple)) * multiple

    def _length_label(self, frames: int) -> str:
        shown = frames - self._spec.dropped_frames
        return f"{shown / self._spec.defaults.fps:.1f} s ({shown} frames)"


def label_of(name: str, field: FieldInfo) -> str:
    """The label of an option: its title, else its name."""
    return field.title or name.replace("_", " ").capitalize()


def _orientation(width: int, height: int) -> str:
    if width == height:
        return ", square"
    return ", wide" if width > height else ", tall"


def _field_text(value: str | float | None) -> str:
    """The value of a setting as text; numbers keep their precision."""
    if isinstance(value, float):
        return repr(value).removesuffix(".0")
    return "" if value is None else str(value)
