"""Shared by generate and decode: the option --output, and the summary of what was written."""

from __future__ import annotations

import os
from typing import Any

from longtake.cli.terminal import View
from longtake.engine.media.output_names import OutputSpec, check_placeholders
from longtake.engine.render_to_files import RenderedFiles
from longtake.errors import RequestError


def output_spec(name: Any, *, metadata: bool, overwrite: bool, request_id: str) -> OutputSpec:
    """Where the videos are written.

    Args:
        name: Value of --output, or of ``output`` in a config file; None if left out.
        metadata: Whether a .json is written next to the videos.
        overwrite: Whether existing files are replaced.
        request_id: Value of the placeholder ``{id}``.

    Raises:
        RequestError: The name is not text, or has an unknown placeholder.
    """
    if name is not None and not isinstance(name, str):
        raise RequestError(f"output={name!r} must be a path: put a number in quotes")
    if name is not None:
        check_placeholders(name)
        name = os.path.expanduser(name)
    return OutputSpec(name, request_id, metadata, overwrite)


def show(rendered: RenderedFiles | None, view: View) -> None:
    """Show the metadata's warnings and what was written; nothing on ranks that write nothing."""
    if rendered is None:
        return
    for warning in rendered.metadata.warnings():
        view.warn(warning)
    view.done(rendered.paths, rendered.metadata)
