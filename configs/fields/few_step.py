"""Settings that a model distilled to a few steps is made for, and those that a file names."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from longtake.configs.base import StrictModel
from longtake.configs.field_types import Scale, Shift, Sigmas, Steps
from longtake.configs.request import MergedOptions, Rendering
from longtake.errors import ModelError, RequestError, one_line

METADATA_KEY = "longtake.few_step"
"""Key of the settings, as JSON, in the metadata of a safetensors file."""

FILE, NONE = "file", "none"
"""Values of the request's few_step that name no preset: the file's settings, and none at all."""

RenderingT = TypeVar("RenderingT", bound=Rendering)


class FewStep(MergedOptions, StrictModel):
    """Settings of a few-step model. Those left out, and options of families, are the request's."""

    if TYPE_CHECKING:  # options of families are arguments, too

        def __init__(self, /, **values: Any) -> None: ...

    num_inference_steps: Steps | None = None
    sigmas: Sigmas | None = None
    flow_shift: Shift | None = None
    guidance_scale: Scale | None = None

    @classmethod
    def from_metadata(cls, metadata: Mapping[str, str], path: Path) -> FewStep | None:
        """The settings in a file's metadata; None if it has none.

        Args:
            metadata: Metadata of a safetensors file.
            path: Path of the file, for messages.

        Raises:
            ModelError: They are no JSON object of known settings.
        """
        text = metadata.get(METADATA_KEY)
        if text is None:
            return None
        try:
            values = json.loads(text)
            if not isinstance(values, dict):
                raise ValueError("must be a JSON object")
            return cls(**values)
        except (ValueError, RecursionError, RequestError) as error:
            raise ModelError(
                f"{path} has metadata {METADATA_KEY} that longtake cannot read: {one_line(error)}"
            ) from error

    def fill(self, request: RenderingT) -> RenderingT:
        """The request, with these settings for the fields that it leaves out.

        The noise levels are those of the number of steps: a request with either takes neither.
        """
        settings = dict(self)
        if (request.num_inference_steps, request.sigmas) != (None, None):
            del settings["num_inference_steps"], settings["sigmas"]
        missing = {
            name: value
            for name, value in settings.items()
            if value is not None and getattr(request, name) is None
        }
        return request.model_copy(update=missing)

    def __str__(self) -> str:
        """The settings in words, such as ``num_inference_steps=4 guidance_scale=1``."""
        given = {name: value for name, value in self if value is not None}
        return " ".join(
            f"{name}={value:g}" if isinstance(value, float) else f"{name}={value}"
            for name, value in given.items()
        )


def common_settings(found: Iterable[tuple[str, FewStep | None]]) -> FewStep | None:
    """The settings that the files of one request are made for; None if no file has any.

    Args:
        found: Names of the files, and their settings.

    Raises:
        RequestError: Two files have different settings.
    """
    named = [(name, settings) for name, settings in found if settings is not None]
    for name, settings in named[1:]:
        first, expected = named[0]
        if settings != expected:
            raise RequestError(
                f"{first} is made for {expected}, and {name} for {settings}: say by few_step which "
                f"preset holds, or few_step={NONE}"
            )
    return named[0][1] if named else None
