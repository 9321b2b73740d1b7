"""Places of weights: the memory of devices and hosts, the time that weights take, the choice."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, get_args

import pytest

from longtake.configs.engine import EngineConfig
from longtake.configs.fields.weights import StorageDtype, TextPlace, WeightPlace
from longtake.configs.hardware import Figure, Hardware
from longtake.configs.parallel import ParallelConfig
from longtake.engine.planning.layout_chooser import choose_layout
from longtake.engine.planning.memory import out_of_memory_reason, plan_memory
from longtake.engine.planning.plan_input import PlanInput
from longtake.engine.planning.prediction import predict
from longtake.engine.planning.weights.places import TEXT_PLACES, WEIGHT_PLACES, Placement, Places
from longtake.parallel import ParallelDims
from tests.unit.engine.planning.test_planner import plan_input

ONE, FOUR = ParallelDims(), ParallelDims(ring_degree=2, ulysses_degree=2)
GIB = 2**30
BLOCKS, OUTSIDE, BLOCK, TEXT = 23.2, 0.67, 0.633, 14.2
"""GiB of HunyuanVideo in bfloat16: all blocks, all else, the largest block, the text encoders."""


def on(gpu: str, **figures: Any) -> PlanInput:
    """The default request on a profile with some figures changed."""
    return changed(plan_input(gpu), **figures)


def changed(planned: PlanInput, **figures: Any) -> PlanInput:
    update = {
        name: Figure(value=value, source="of a test") if isinstance(value, float) else value
        for name, value in figures.items()
    }
    return replace(planned, hardware=planned.hardware.model_copy(update=update))


def test_places_are_all_declared() -> None:
    assert set(WEIGHT_PLACES) == set(get_args(WeightPlace))
    assert set(TEXT_PLACES) == set(get_args(TextPlace))


@pytest.mark.parametrize("dims", [ONE, FOUR], ids=lambda dims: dims.name)
def test_the_weights_on_a_device(dims: ParallelDims) -> None:
    planned = on("rtx4090")
    held = {place: plan_memory(planned, dims, Placement(place)) for place in WEIGHT_PLACES}
    whole = BLOCKS + OUTSIDE
    assert held["resident"].weights / GIB == pytest.approx(whole, rel=0.01)
    assert held["split"].weights / GIB == pytest.approx(whole / dims.world_size, rel=0.01)
    for place in ("streamed", "disk"):
        assert held[place].weights / GIB == pytest.approx(OUTSIDE, rel=0.02)
        assert held[place].slots / GIB == pytest.approx(2 * BLOCK, rel=0.01)
    assert held["resident"].slots == held["split"].slots == 0


def test_the_peak_is_the_largest_stage() -> None:
    """Text encoders, slots and the autoencoder are on the device only while they work."""
    memory = plan_memory(on("rtx4090"), ONE, Placement("streamed", "resident"))
    lasting = memory.runtime + memory.weights
    assert memory.text_stage == lasting + memory.text == memory.total
    assert memory.denoising_stage == lasting + memory.slots + memory.activations + memory.buffers
    assert memory.decoding_stage == lasting + memory.autoencoder + memory.decode
    streamed = plan_memory(on("rtx4090"), ONE, Placement("streamed", "streamed"))
    assert streamed.text < 4 * GIB < memory.text
    assert streamed.total == streamed.denoising_stage < memory.total
    whole = plan_memory(on("rtx4090"), ONE, Placement())
    assert whole.denoising_stage == sum(
        (whole.runtime, whole.weights, whole.autoencoder, whole.activations)
    )


@pytest.mark.parametrize("model", ["hunyuan-video", "hunyuan-video-i2v", "wan2.1-i2v-14b-720p"])
def test_text_is_encoded_in_4_gib(model: str) -> None:
    planned = plan_input("rtx4090", model=model)
    assert 0.3 * GIB < 2 * planned.costs.text_streaming_parameters < 4 * GIB


def test_a_host_holds_one_copy_for_all_of_its_ranks() -> None:
    planned = on("rtx4090")
    one, four = (plan_memory(planned, d, Placement("streamed")).host for d in (ONE, FOUR))
    assert one.weights == four.weights == pytest.approx(BLOCKS * GIB, rel=0.01)
    assert one.text == four.text == pytest.approx(TEXT * GIB, rel=0.01)
    assert four.pinned == one.pinned == one.weights
    disk = plan_memory(planned, FOUR, Placement("disk", "disk")).host
    assert (disk.weights, disk.text) == (0, 0)
    text = planned.costs.text_streaming_parameters * planned.element_size
    assert disk.pinned == 4 * 2 * GIB + text  # torch pins powers of two


@pytest.mark.parametrize(
    ("figures", "placement", "text"),
    [
        (
            {"host_memory_bytes": 32.0 * GIB},
            Placement("streamed"),
            "GiB of host memory and 28.8 of",
        ),
        ({"host_memory_bytes": 32.0 * GIB}, Placement("streamed", "disk"), None),
        (
            {"host_memory_bytes": 16.0 * GIB},
            Placement("streamed", "disk"),
            "needs 25.5 GiB of host",
        ),
        ({"host_memory_bytes": 16.0 * GIB}, Placement("disk", "disk"), None),
        (
            {"pinned_bytes": 16.0 * GIB},
            Placement("streamed"),
            "needs to pin 23.2 GiB of host memory",
        ),
        ({"pinned_bytes": 16.0 * GIB}, Placement("disk"), None),
        ({"host_memory_bytes": None}, Placement("streamed"), None),
    ],
)
def test_a_host_with_too_little_memory_is_refused(
    figures: dict[str, Any], placement: Placement, text: str | None
) -> None:
    planned = on("rtx4090", **{"host_memory_bytes": None, **figures})
    reason = out_of_memory_reason(planned, ONE, placement)
    assert reason is None if text is None else text in str(reason)


def test_unified_memory_holds_both() -> None:
    planned = on("rtx4090", memory_bytes=64.0 * GIB, unified_memory=True)
    assert out_of_memory_reason(planned, ONE, Placement()) is None
    streamed = plan_memory(planned, ONE, Placement("streamed"))
    assert streamed.text_stays and streamed.host.text == 0
    reason = out_of_memory_reason(
        changed(planned, memory_bytes=40.0 * GIB), ONE, Placement("streamed")
    )
    assert reason is not None and "GiB a host and there are 40.0" in reason


def test_weights_arrive_while_blocks_compute() -> None:
    planned = on("rtx4090")
    resident, streamed = (predict(planned, ONE, Placement(p)) for p in ("resident", "streamed"))
    exposed = streamed.step.seconds - resident.step.seconds
    transfer_s = BLOCKS * GIB / planned.hardware.host_bytes_per_s.value  # type: ignore[union-attr]
    assert exposed == pytest.approx(transfer_s / 60, rel=0.01)  # that of the first block
    assert streamed.step.hidden_s == pytest.approx(transfer_s * 59 / 60, rel=0.01)
    slow = changed(planned, host_bytes_per_s=transfer_s * 1e9 / resident.step.seconds)
    late = predict(slow, ONE, Placement("streamed")).step
    assert late.seconds > 10 * resident.step.seconds


def step_s(hardware: Hardware, dims: ParallelDims, placement: Placement, **request: Any) -> float:
    planned = replace(plan_input("h100", **request), hardware=hardware)
    return predict(planned, dims, placement).step.seconds


def test_ranks_of_a_host_share_its_memory_bandwidth() -> None:
    """Small videos compute for less time than their weights travel."""
    small = {"height": 320, "width": 512, "num_frames": 33}
    fast, slow = (on("h100", host_memory_bytes_per_s=rate).hardware for rate in (800.0e9, 40.0e9))
    eight = ParallelDims(ulysses_degree=8)
    placement = Placement("streamed")
    assert step_s(slow, ONE, placement, **small) < 1.2 * step_s(fast, ONE, placement, **small)
    assert step_s(slow, eight, placement, **small) > 3 * step_s(fast, eight, placement, **small)


def test_files_that_the_page_cache_holds_are_read_from_memory() -> None:
    small = {"height": 320, "width": 512, "num_frames": 33}
    roomy, tight = (on("rtx4090", host_memory_bytes=size * GIB).hardware for size in (64.0, 24.0))
    cached, read = (step_s(each, ONE, Placement("disk"), **small) for each in (roomy, tight))
    assert read == pytest.approx(BLOCKS * GIB / 2e9, rel=0.1)
    assert cached < read / 3


@pytest.mark.parametrize(
    ("gpu", "devices", "figures", "chosen"),
    [
        ("h100", 1, {}, Placement("resident", "streamed")),
        ("rtx4090", 1, {}, Placement("streamed", "streamed")),
        ("rtx4090", 1, {"pinned_bytes": 30.0 * GIB}, Placement("streamed", "resident")),
        ("rtx4090", 1, {"host_memory_bytes": 32.0 * GIB}, Placement("streamed", "disk")),
        ("rtx4090", 1, {"host_memory_bytes": 16.0 * GIB}, Placement("disk", "disk")),
        ("rtx4090", 8, {}, Placement("streamed", "streamed")),
        ("rtx4090", 8, {"host_memory_bytes": 32.0 * GIB}, Placement("split", "streamed")),
    ],
)
def test_auto_is_the_fastest_exact_plan_that_fits(
    gpu: str, devices: int, figures: dict[str, Any], chosen: Placement
) -> None:
    found = choose_layout(on(gpu, **figures), ParallelConfig(), devices, Places())
    assert found.placement == chosen
    if chosen != Placement():
        assert f"{chosen.weights} weights and {chosen.text} text encoders" in found.why
        assert "GiB a rank; all resident would need" in found.why


def test_storage_of_fewer_bits_takes_fewer_bytes() -> None:
    planned = on("rtx4090")
    plain = plan_memory(planned, ONE, Placement()).weights
    shares: dict[StorageDtype, float] = {"float8": 0.5, "int8": 0.5, "nf4": 0.28}
    for storage, share in shares.items():
        stored = replace(planned, storage_dtype=storage)
        found = plan_memory(stored, ONE, Placement()).weights
        assert found - OUTSIDE * GIB == pytest.approx(share * (plain - OUTSIDE * GIB), rel=0.02)


def test_one_rank_splits_nothing() -> None:
    assert Places.of(EngineConfig(weights="split")).weights == ("resident",)
    assert Places.of(EngineConfig(weights="split", devices=2)).weights == ("split",)
    assert predict(on("h100"), ONE, Placement("split")).placement == Placement()


def test_memory_that_is_nearly_full_is_avoided_where_that_costs_nothing() -> None:
    """Peaks are predicted within 5 %."""
    needed = plan_memory(on("rtx5090"), ONE, Placement("resident", "streamed")).total
    tight, roomy = (on("rtx5090", memory_bytes=share * needed) for share in (1.01, 1.06))
    whole, streamed = (
        choose_layout(each, ParallelConfig(), 1, Places()).placement for each in (roomy, tight)
    )
    assert (whole.weights, streamed.weights) == ("resident", "streamed")
    only = choose_layout(tight, ParallelConfig(), 1, Places(("resident",)))
    assert only.placement == Placement("resident", "streamed")


def test_what_needs_least_is_taken_if_nothing_fits(caplog: pytest.LogCaptureFixture) -> None:
    small = on("rtx4090", memory_bytes=4.0 * GIB)
    found = choose_layout(small, ParallelConfig(), 1, Places())
    assert found.placement.weights != "resident" and found.placement.text == "disk"
    assert "may run out of memory: needs 8.2 GiB a rank and there are 4.0" in caplog.text
