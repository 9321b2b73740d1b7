"""The version of longtake, and those of the libraries that a video depends on."""

from __future__ import annotations

__version__ = "0.1.0"

_LIBRARIES = ("torch", "diffusers", "transformers", "safetensors", "numpy", "av")


def library_versions() -> dict[str, str]:
    """Versions of longtake, Python and the installed libraries, by name."""
    # Imported here: `import longtake` reads the version above before signals are handled.
    import platform
    from importlib.metadata import PackageNotFoundError, version

    versions = {"longtake": __version__, "python": platform.python_version()}
    for library in _LIBRARIES:
        try:
            versions[library] = version(library)
        except PackageNotFoundError:
            continue
    return versions
