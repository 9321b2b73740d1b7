"""What an engine checks before it starts, and in which order."""

from __future__ import annotations

from typing import Any

import pytest

from longtake.configs.engine import EngineConfig
from longtake.configs.hardware import Figure, load_hardware
from longtake.configs.parallel import ParallelConfig
from longtake.configs.request import ResolvedRequest, VideoRequest
from longtake.engine.planning import layout_chooser
from longtake.engine.planning.memory import plan_memory
from longtake.engine.planning.plan_input import PlanInput
from longtake.engine.planning.weights.places import Placement
from longtake.engine.resolve.outline import EngineOutline
from longtake.errors import RefusedInputError
from longtake.parallel import ParallelDims
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


def test_weights_are_placed_for_the_largest_request(
    model: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a host that holds the weights only beside a small video."""
    outline = EngineOutline(EngineConfig(model=model, device="cpu"))
    small, large = (
        outline.resolve(VideoRequest(prompt="a", seed=0, num_frames=count)) for count in (1, 257)
    )
    host = load_hardware("cpu").model_copy(
        update={"runtime_bytes": Figure(value=0, source="of a test")}
    )
    planned = PlanInput.for_engine(outline.config, outline.spec, host, large)
    needed = plan_memory(planned, ParallelDims(), Placement()).total
    limit = Figure(value=needed - 1, source="of a test")
    monkeypatch.setattr(
        layout_chooser,
        "hardware_here",
        lambda kind: host.model_copy(update={"memory_bytes": limit}),
    )

    def placed(requests: list[ResolvedRequest], **options: Any) -> tuple[str, str]:
        outline = EngineOutline(EngineConfig(model=model, device="cpu", **options))
        outline.place_weights(requests)
        return outline.config.places

    assert placed([small]) == placed([]) == ("resident", "resident")
    assert placed([small, large]) == placed([large, small]) != ("resident", "resident")
    explicit = {"weights": "streamed", "text_weights": "disk"}
    assert placed([small], **explicit) == ("streamed", "disk")
    assert placed([large], autoencoder_only=True) == ("resident", "resident")


def test_degrees_that_the_default_request_does_not_suit(model: str) -> None:
    """Passes side by side need guidance, which requests may turn on."""
    side_by_side = ParallelConfig(cfg_degree=2)
    outline = EngineOutline(
        EngineConfig(model=model, device="cpu", devices=2, parallel=side_by_side)
    )
    outline.place_weights()
    assert outline.config.places == ("resident", "resident")
    assert outline.config.parallel == side_by_side


def test_places_that_are_chosen_stay(model: str) -> None:
    outline = EngineOutline(EngineConfig(model=model, device="cpu", weights="disk"))
    outline.place_weights()
    assert outline.config.places == ("disk", "resident")
    chosen = outline.config
    outline.place_weights([outline.resolve(VideoRequest(prompt="a", seed=0))])
    assert outline.config is chosen
    request = outline.resolve(VideoRequest(prompt="a", seed=0))
    assert outline.plan_of(request).startswith("plan: 1x1x1 +disk, disk weights and resident text")
