"""What a video's own file says of how it was made."""

from __future__ import annotations

import os

from longtake.configs.engine import EngineConfig
from longtake.configs.request import ResolvedDecode, ResolvedRequest


def embedded_metadata(request: ResolvedDecode, engine: EngineConfig) -> dict[str, str]:
    """Prompt, seed and model, as far as they are known, under the names that players show.

    The same request gives the same text, wherever the model's folder is and whoever asks.

    Returns:
        ``title`` and ``comment``, free of what no container can hold.
    """
    model = f"model: {model_name(engine.model)}"
    if not isinstance(request, ResolvedRequest):
        return {"comment": _storable(model)}
    comment = f"seed: {request.seed}, {model}"
    return {"title": _storable(request.prompt), "comment": _storable(comment)}


def model_name(model: str) -> str:
    """A hub id or a bundled model by its own name, a folder by its last part alone."""
    folder = os.path.expanduser(model)
    return os.path.basename(os.path.abspath(folder)) if os.path.exists(folder) else model


def _storable(text: str) -> str:
    """Containers hold UTF-8 that ends with the first NUL."""
    return text.replace("\0", "").encode(errors="replace").decode()
