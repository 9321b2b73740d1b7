"""The page's form: its choices, and the conversion between its fields and requests."""

from __future__ import annotations

import math
import secrets
from collections.abc import Mapping, Sequence
from typing import Any, Literal, get_args, get_origin

from pydantic.fields import FieldInfo

from longtake.configs.families import holds_mapping
from longtake.configs.fields.few_step import FILE, NONE
from longtake.configs.fields.lora import LoraUse, parse_lora
from longtake.configs.request import ResolvedRequest, VideoRequest
from longtake.pipelines.spec import ModelSpec

_FIRST_FIELDS = ("prompt", "size", "length", "seed")
_LORA_FIELDS = tuple(f"lora-{n}{part}" for n in (1, 2, 3) for part in ("", "-scale"))
_FIELD_OF_OPTION = {
    "lora": _LORA_FIELDS[0],
    "width": "size",
    "height": "size",
    "seconds": "length",
    "num_frames": "length",
    "input_reference": "picture",
    "last_image": "last-picture",
}
PICTURE_IDS = {"image": "picture", "last_image": "last-picture"}
"""Ids of the elements that choose a picture, by request field."""
_FRAMES = "frames"
"""Unit of a length in frames. A length without a unit is in seconds."""
AS_THE_PICTURE = "as the picture"


class Form:
    """The form of one model.

    Args:
        spec: Spec of the model.
        takes_loras: Whether requests may name LoRAs.

    Attributes:
        loras: Names of the fields that choose LoRAs, each before that of its scale.
        settings: Labels of the options under "More settings", by name.
        fields: Names of all fields, in the order of the page.
    """

    def __init__(self, spec: ModelSpec, *, takes_loras: bool = False) -> None:
        self._spec = spec
        self.loras = _LORA_FIELDS if takes_loras else ()
        options = spec.options.model_fields.items()
        presets = {"few_step": "Few-step preset"} if spec.few_step_presets else {}
        self.settings = {
            **presets,
            "num_inference_steps": "Steps",
            "guidance_scale": "Guidance",
            "flow_shift": "Flow shift",
            **{name: label_of(name, field) for name, field in options if not holds_mapping(field)},
            "fps": "Frame rate (fps)",
            "num_videos": "Number of videos",
            "negative_prompt": "Negative prompt",
        }
        self.fields = (*_FIRST_FIELDS, *self.loras, *self.settings)

    def sizes(self) -> list[tuple[str, str]]:
        """Choices of the size, as pairs of a label and ``WIDTHxHEIGHT``.

        The size of the picture comes first if the model needs one, then the model's default.
        """
        defaults = self._spec.defaults
        height, width = defaults.height, defaults.width
        side = math.sqrt(height * width)
        trained = [size for sizes in defaults.sizes.values() for size in sizes]
        derived = [(width, height), (side, side), (height / 2, width / 2)]
        labels = {}
        if self._spec.required_pictures:
            labels[AS_THE_PICTURE] = AS_THE_PICTURE
        for high, wide in [(height, width), *(trained or derived)]:
            high, wide = self._round_size(high), self._round_size(wide)
            labels[f"{wide}x{high}"] = f"{wide} × {high}{_orientation(wide, high)}"
        return [(label, size) for size, label in labels.items()]

    def lengths(self) -> list[tuple[str, str]]:
        """Choices of the length, as pairs of a label and a value such as ``33 frames``."""
        spec, default = self._spec, self._spec.defaults.num_frames
        multiple, fewest = spec.frames_multiple, spec.fewest_frames
        quarters = ((default - fewest) * part // 4 // multiple for part in (1, 2, 3))
        lengths = {default, *(count * multiple + fewest for count in quarters)}
        frames = sorted(length for length in lengths if length > spec.dropped_frames)
        return [(self._length_label(count), f"{count} {_FRAMES}") for count in frames]

    @property
    def default_length(self) -> str:
        """The model's default length."""
        return f"{self._spec.defaults.num_frames} {_FRAMES}"

    def default(self, name: str) -> str:
        """The default of a setting, as text; empty if it has none."""
        spec = self._spec
        special = {
            "flow_shift": spec.flow_shift,
            "negative_prompt": spec.defaults.negative_prompt or "what not to show",
        }
        default = getattr(spec.defaults, name, VideoRequest.model_fields[name].default)
        value = special.get(name, default)
        return f"{value:g}" if isinstance(value, int | float) else str(value or "")

    def choices(self, name: str) -> tuple[str, ...]:
        """The values of a setting that has few; empty if it has any number of them."""
        if name == "few_step":
            return (*self._spec.few_step_presets, FILE, NONE)
        for kind in get_args(VideoRequest.model_fields[name].annotation):
            if get_origin(kind) is Literal:
                return tuple(map(str, get_args(kind)))
        return ()

    def request(self, values: Sequence[Any]) -> dict[str, Any]:
        """The fields of the equivalent API request. Empty fields are left out.

        Args:
            values: Values of the form in the order of ``fields``; trailing ones may be missing.
        """
        form = {**dict.fromkeys(self.fields), **dict(zip(self.fields, values, strict=False))}
        request: dict[str, Any] = {"prompt": form["prompt"] or ""}
        if form["size"] and form["size"] != AS_THE_PICTURE:
            request["size"] = str(form["size"]).replace(" ", "").replace("×", "x")
        if form["length"]:
            number, _, unit = str(form["length"]).strip().partition(" ")
            if unit == _FRAMES:
                request["num_frames"] = number
            else:
                request["seconds"] = number.removesuffix("s")
        if loras := self._loras(form):
            request["lora"] = loras
        for name in ("seed", *self.settings):
            value = form[name].strip() if isinstance(form[name], str) else form[name]
            if value not in (None, ""):
                request[name] = value
        return request

    def field_of(self, param: str | None) -> str:
        """The field of the form for an option of the API; empty if there is none."""
        field = _FIELD_OF_OPTION.get(param or "", param or "")
        return field if field in (*self.fields, *PICTURE_IDS.values()) else ""

    def values(self, request: ResolvedRequest) -> list[Any]:
        """The values of the form for a request, in the order of ``fields``."""
        return [
            request.prompt,
            f"{request.width}x{request.height}",
            f"{request.num_frames} {_FRAMES}",
            str(request.seed),
            *self._lora_values(request),
            *(_field_text(getattr(request, name)) for name in self.settings),
        ]

    def _loras(self, form: Mapping[str, Any]) -> list[str]:
        """The LoRAs that the form's fields choose, as a request names them."""
        chosen = []
        for name, scale_name in zip(self.loras[::2], self.loras[1::2], strict=True):
            lora, scale = (str(form[each] or "").strip() for each in (name, scale_name))
            uses = lora.split(", ") if name == self.loras[-2] else [lora]
            chosen += [_with_scale(use, scale) for use in uses if use]
        return chosen

    def _lora_values(self, request: ResolvedRequest) -> list[str]:
        """The values of the fields that choose LoRAs. The last field lists all that remain."""
        if not self.loras:
            return []
        uses, last = [parse_lora(each) for each in request.lora or ()], len(self.loras) // 2 - 1
        values = [text for use in uses[:last] for text in _lora_and_scale(use)]
        if len(uses) == last + 1:
            values += _lora_and_scale(uses[last])
        else:
            values += [", ".join(map(str, uses[last:])), ""]
        return [*values, *[""] * (len(self.loras) - len(values))]

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


def _with_scale(lora: str, scale: str) -> str:
    """A LoRA with the scale of its field, if there is one."""
    if not scale:
        return lora
    try:
        return parse_lora(lora).scaled(scale)
    except ValueError:
        return lora  # refused with the other fields


def _lora_and_scale(use: LoraUse) -> tuple[str, str]:
    """The values of the two fields of a LoRA."""
    return use.at_scale_1, _field_text(use.scale)


def _orientation(width: int, height: int) -> str:
    if width == height:
        return ", square"
    return ", wide" if width > height else ", tall"


def _field_text(value: str | float | None) -> str:
    """The value of a setting as text; numbers keep their precision."""
    if isinstance(value, float):
        return repr(value).removesuffix(".0")
    return "" if value is None else str(value)
