"""Arguments of a call from Python: a request, a prompt, or fields by name."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from PIL import Image

from longtake.configs.request import PICTURES, Rendering, VideoRequest
from longtake.engine.media.pictures.picture import encode_png
from longtake.errors import RequestError


@contextmanager
def request_from_arguments(
    request: Rendering | str | None, fields: Mapping[str, Any]
) -> Iterator[Rendering]:
    """The request of a call from Python. Within the context, a PIL image has a temporary file.

    Args:
        request: A request, a prompt, or None if all fields are passed by name.
        fields: Fields of :class:`VideoRequest` by name; pictures may be paths or PIL images.

    Raises:
        RequestError: Both a request and fields were passed, or a value is invalid.
    """
    if isinstance(request, str):
        fields, request = {"prompt": request, **fields}, None
    if isinstance(request, Rendering):
        if fields:
            raise RequestError(
                f"{', '.join(fields)} together with a request: pass a request, or its fields by "
                "name"
            )
        yield request
    elif request is not None:
        raise RequestError(
            f"request={str(request)[:60]!r} is not a VideoRequest: pass one, a prompt, or fields "
            "by name"
        )
    else:
        with TemporaryDirectory() if temporary_files(fields) else nullcontext("") as folder:
            yield VideoRequest(**{**fields, **_written(fields, Path(folder))})


def temporary_files(fields: Mapping[str, Any]) -> list[str]:
    """The fields that hold a PIL image, whose file is temporary."""
    return [name for name in PICTURES if isinstance(fields.get(name), Image.Image)]


def _written(fields: Mapping[str, Any], folder: Path) -> dict[str, Path]:
    """Write the PIL images of a call, and return their paths by field."""
    paths = {}
    for name in temporary_files(fields):
        paths[name] = folder / f"{name}.png"
        paths[name].write_bytes(encode_png(fields[name]))
    return paths
