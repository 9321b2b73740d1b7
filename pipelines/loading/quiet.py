"""Silences libraries: the terminal belongs to the caller."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from diffusers.utils import logging as diffusers_logging
from transformers.utils import logging as transformers_logging

_LIBRARIES = (diffusers_logging, transformers_logging)


@contextmanager
def quiet_libraries() -> Iterator[None]:
    """Disable log lines and progress bars of diffusers and transformers in the enclosed block."""
    levels = [library.get_verbosity() for library in _LIBRARIES]
    shown = [library.is_progress_bar_enabled() for library in _LIBRARIES]
    for library in _LIBRARIES:
        library.set_verbosity(library.CRITICAL)
        library.disable_progress_bar()
    try:
        yield
    finally:
        for library, level, bars in zip(_LIBRARIES, levels, shown, strict=True):
            library.set_verbosity(level)
            if bars:
                library.enable_progress_bar()
