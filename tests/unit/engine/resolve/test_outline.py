"""What an engine checks before it starts, and in which order."""

from __future__ import annotations

from typing import Any

import pytest

from longtake.configs.engine import EngineConfig
from longtake.configs.parallel import ParallelConfig
from longtake.engine.resolve.outline import EngineOutline
from longtake.errors import RefusedInputError
from longtake.pipelines import registry


@pytest.mark.parametrize(
    "options",
    [
        dict(device="cuda", devices=65536),
        dict(device="cpu", devices=4, parallel=ParallelConfig(ulysses_degree=3)),
        dict(device="cpu", attention_kernel="none such"),
    ],
    ids=["devices", "degrees", "kernel"],
)
def test_weights_are_not_downloaded_for_what_is_refused(
    model: str, monkeypatch: pytest.MonkeyPatch, options: dict[str, Any]
) -> None:
    """Checking the weights of a hub model downloads them."""
    inspect, weights_checked = registry.inspect, []

    def recorded(*args: Any, weights: bool = True, **rest: Any) -> Any:
        weights_checked.append(weights)
        return inspect(*args, weights=weights, **rest)

    monkeypatch.setattr(registry, "inspect", recorded)
    with pytest.raises(RefusedInputError):
        EngineOutline(EngineConfig(model=model, **options))
    assert weights_checked == [False]
    EngineOutline(EngineConfig(model=model, device="cpu"))
    assert weights_checked == [False, False, True]


def test_the_storage_is_part_of_what_a_video_depends_on(model: str) -> None:
    whole, *stored = (
        EngineOutline(EngineConfig(model=model, device="cpu", storage_dtype=storage))
        for storage in (None, "float8", "int8")
    )
    fingerprint, dtype, vae_dtype, version = whole.identity_part().split()
    assert [each.identity_part() for each in stored] == [
        f"{fingerprint} {dtype} {vae_dtype} {storage} {version}" for storage in ("float8", "int8")
    ]
