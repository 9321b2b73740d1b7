"""Fast imports of large libraries."""

from __future__ import annotations

import gc
import sys
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def garbage_collection_paused() -> Iterator[None]:
    """Pause garbage collection while large libraries are imported in the enclosed lines.

    torch, diffusers and transformers create half a million objects that live as long as the
    process; scanning them repeatedly took a quarter of a rank's startup time. All objects of the
    process are frozen at the end: later collections skip them. Garbage is collected first, since
    frozen cycles are never freed: those that imports leave include exceptions, whose frames hold
    all callers' variables.
    """
    if not gc.isenabled():
        yield
        return
    loaded = len(sys.modules)
    gc.disable()
    try:
        yield
        if len(sys.modules) > loaded:
            gc.collect()
            gc.freeze()
    finally:
        gc.enable()
