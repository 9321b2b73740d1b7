"""The exceptions that longtake raises."""

from __future__ import annotations

import pytest

from longtake import errors


@pytest.mark.parametrize("name", ["LayoutError", "TensorError", "KernelError"])
def test_refusals_are_value_errors(name: str) -> None:
    kind = getattr(errors, name)
    assert issubclass(kind, errors.RefusedInputError) and issubclass(kind, ValueError)


def test_all_exceptions_derive_from_longtake_error() -> None:
    kinds = [kind for kind in vars(errors).values() if getattr(kind, "__bases__", ())]
    kinds = [kind for kind in kinds if kind.__module__ == errors.__name__]
    assert len(kinds) >= 5
    assert all(issubclass(kind, errors.LongtakeError) for kind in kinds)
