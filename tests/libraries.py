"""Stand-ins of libraries that are not installed."""

from __future__ import annotations

import sys
from types import ModuleType

import pytest


def libraries(monkeypatch: pytest.MonkeyPatch, *names: str) -> list[ModuleType]:
    """Make modules of these names importable, with their packages; returns the modules."""
    modules = []
    for name in names:
        parts = name.split(".")
        for length in range(1, len(parts) + 1):
            prefix = ".".join(parts[:length])
            if prefix not in sys.modules:
                module = ModuleType(prefix)
                module.__path__ = []
                monkeypatch.setitem(sys.modules, prefix, module)
        modules.append(sys.modules[name])
    return modules
