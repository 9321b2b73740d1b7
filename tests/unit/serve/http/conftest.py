"""Servers with stand-in ranks."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.standin import gray_server
from tests.unit.serve.http.helpers import Gray


@pytest.fixture
def gray(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Gray]:
    with gray_server(monkeypatch, tmp_path) as both:
        yield both


@pytest.fixture
def animating(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Gray]:
    with gray_server(monkeypatch, tmp_path, "demo-i2v") as both:
        yield both
