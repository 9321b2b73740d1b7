"""What generate and decode share: the option --output, and the line that says what was written."""

from __future__ import annotations

import os
from typing import Any

from longtake.cli.terminal import View
from longtake.engine.media.output_names import OutputSpec, check_placeholders
from longtake.engine.render_to_files import RenderedFiles
from longtake.errors import RequestError


def output_spec(name: Any, *, metadata: bool, overwrite: bool, request_id: str) -> OutputSpec:
    """Where the videos go.

    Args:
        name: Value of --output, or of ``output`` in a config file; None if it was left out.
        metadata: Whether a .json is written beside the videos.
        overwrite: Whether earlier files are replaced.
        request_id: Value of the placeholder ``{id}``.

    Raises:
        RequestError: The name is no text, or has an unknown placeholder.
    """
    if name is not None and not isinstance(name, str):
        raise RequestError(f"output={name!r} must be a path, in quotes where it is a number")
    if name is not None:
        check_placeholders(name)
        name = os.path.expanduser(name)
    return OutputSpec(name, request_id, metadata, overwrite)


def show(rendered: RenderedFiles | None, view: View) -> None:
    """Show what was written, after the metadata's warnings; nothing on ranks that write nothing."""
    if rendered is None:
        return
    for warning in rendered.metadata.warnings():
        view.warn(warning)
    view.done(rendered.paths, rendered.metadata)
