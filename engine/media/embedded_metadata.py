"""Metadata inside a video file: prompt, seed and model."""

from __future__ import annotations

import os

from longtake.configs.engine import EngineConfig
from longtake.configs.request import ResolvedDecode, ResolvedRequest


def embedded_metadata(request: ResolvedDecode, engine: EngineConfig) -> dict[str, str]:
    """Prompt, seed and model, where known, under names that players show.

    The text does not depend on where the model's folder is.

    Returns:
        ``title`` and ``comment``, without characters that containers cannot hold.
    """
    model = f"model: {model_name(engine.model)}"
    if not isinstance(request, ResolvedRequest):
        return {"comment": _storable(model)}
    comment = f"seed: {request.seed}, {model}"
    return {"title": _storable(request.prompt), "comment": _storable(comment)}


def model_name(model: str) -> str:
    """A hub id or a bundled model unchanged; of a folder, its last component."""
    folder = os.path.expanduser(model)
    return os.path.basename(os.path.abspath(folder)) if os.path.exists(folder) else model


def _storable(text: str) -> str:
    """Valid UTF-8 without NUL, which ends a text in containers."""
    return text.replace("\0", "").encode(errors="replace").decode()
