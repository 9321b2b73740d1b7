"""What a call from Python asks for: a request, or its fields by name."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from PIL import Image

from longtake.configs.request import Rendering, VideoRequest
from longtake.engine.media.picture import png_of
from longtake.errors import RequestError


@contextmanager
def request_of(request: Rendering | str | None, fields: Mapping[str, Any]) -> Iterator[Rendering]:
    """The request that is meant. A picture in memory has a temporary file for as long as the
    enclosed lines run.

    Args:
        request: the whole of it, or its prompt; None: its fields say all.
        fields: of :class:`VideoRequest` by name; ``image`` may be a path or an image of PIL.

    Raises:
        RequestError: it is said in two ways, or a value cannot be.
    """
    if isinstance(request, str):
        fields, request = {"prompt": request, **fields}, None
    if isinstance(request, Rendering):
        if fields:
            raise RequestError(
                f"{', '.join(fields)} beside a request: pass a request, or its fields by name"
            )
        yield request
    elif request is not None:
        raise RequestError(
            f"request={str(request)[:60]!r} is no VideoRequest: pass one, a prompt, or fields by "
            "name"
        )
    elif isinstance(image := fields.get("image"), Image.Image):
        with TemporaryDirectory() as folder:
            path = Path(folder) / "image.png"
            path.write_bytes(png_of(image))
            yield VideoRequest(**{**fields, "image": path})
    else:
        yield VideoRequest(**fields)
