"""Only the transformer can be split over ranks, and stored in fewer bits."""

from __future__ import annotations

import pytest
import torch

from longtake.pipelines.loading.plan import ComponentPlan, LoadPlan

WHOLE, SPLIT = ComponentPlan(torch.bfloat16), ComponentPlan(torch.bfloat16, "split")


def test_a_split_transformer() -> None:
    plan = LoadPlan(SPLIT, WHOLE, ComponentPlan(torch.float32))
    assert (plan.transformer.place, plan.autoencoder.place, plan.kernel) == (
        "split",
        "resident",
        "auto",
    )


def test_all_components_resident_in_one_dtype() -> None:
    assert LoadPlan.resident(torch.bfloat16) == LoadPlan(WHOLE, WHOLE, WHOLE)


def test_other_components_are_not_split() -> None:
    with pytest.raises(ValueError, match="text_encoders cannot be split: use resident"):
        LoadPlan(WHOLE, SPLIT, WHOLE)
    with pytest.raises(ValueError, match="autoencoder cannot be split: use resident"):
        LoadPlan(WHOLE, WHOLE, SPLIT)


def test_other_components_are_not_stored_in_fewer_bits() -> None:
    stored = ComponentPlan(torch.bfloat16, storage="int8")
    assert LoadPlan(stored, WHOLE, WHOLE).transformer.storage == "int8"
    with pytest.raises(ValueError, match="text_encoders cannot be stored as int8: use None"):
        LoadPlan(WHOLE, stored, WHOLE)
    with pytest.raises(ValueError, match="autoencoder cannot be stored as int8: use None"):
        LoadPlan(WHOLE, WHOLE, stored)
