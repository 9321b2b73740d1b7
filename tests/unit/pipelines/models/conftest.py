"""Models without values."""

from __future__ import annotations

import pytest
from torch._subclasses.fake_tensor import FakeTensorMode


@pytest.fixture(scope="module")
def shapes() -> FakeTensorMode:
    """Mode in which tensors have shapes only."""
    return FakeTensorMode()
