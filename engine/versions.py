"""The versions of what computes, as they stand beside every video."""

from __future__ import annotations

import platform
from importlib.metadata import PackageNotFoundError, version

import longtake

_LIBRARIES = ("torch", "diffusers", "transformers", "safetensors", "numpy", "av")


def versions() -> dict[str, str]:
    """Of longtake, Python and the libraries that are installed, by name."""
    found = {"longtake": longtake.__version__, "python": platform.python_version()}
    for library in _LIBRARIES:
        try:
            found[library] = version(library)
        except PackageNotFoundError:
            continue
    return found
