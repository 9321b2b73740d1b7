"""Places of weights in configurations, and what files of 0.1.0 say of them."""

from __future__ import annotations

from typing import Any

import pytest

from longtake.configs.engine import EngineConfig
from longtake.configs.parallel import ParallelConfig
from longtake.errors import RequestError


@pytest.mark.parametrize(("sharded", "weights"), [(True, "split"), (False, "auto")])
def test_a_record_of_0_1_0_is_read(sharded: bool, weights: str) -> None:
    record = EngineConfig(devices=4, parallel=ParallelConfig(ring_degree=2)).model_dump(mode="json")
    for name in ("weights", "text_weights", "storage_dtype"):
        del record[name]
    record["parallel"]["shard_weights"] = sharded
    found = EngineConfig.model_validate(record)
    assert found.weights == weights and found.text_weights == "auto"
    assert found.parallel == ParallelConfig(ring_degree=2)


@pytest.mark.parametrize(
    ("values", "text"),
    [
        ({"parallel": {"shard_weights": "many"}}, "shard_weights='many' must be true or false"),
        ({"parallel": {"shard_wights": True}}, "shard_wights"),
        ({"weights": "host"}, "weights='host' must be auto, resident, streamed, disk or split"),
        ({"text_weights": "split"}, "text_weights='split'"),
        ({"storage_dtype": "fp8"}, "storage_dtype='fp8'"),
    ],
)
def test_refusals(values: dict[str, Any], text: str) -> None:
    with pytest.raises(RequestError, match=text):
        EngineConfig(**values)


def test_ranks_see_resolved_places_only() -> None:
    assert EngineConfig(weights="disk", text_weights="streamed").places == ("disk", "streamed")
    with pytest.raises(ValueError, match="place_weights first"):
        _ = EngineConfig(weights="disk").places
