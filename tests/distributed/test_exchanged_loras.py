"""LoRAs are exchanged on loaded ranks, wherever weights live: as if the model was loaded with them,
and without one as if none had been there, to the bit. No other weight is read.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest

from longtake.configs.fields.weights import StorageDtype, WeightPlace
from longtake.engine.loras.choice import NO_LORAS, LoraChoice
from longtake.engine.loras.matching import LoraMatcher
from longtake.engine.loras.rank_loras import RankLoras
from longtake.errors import EngineError, ModelError, RequestError
from longtake.parallel import ParallelDims, World
from longtake.pipelines.family import VideoPipeline
from longtake.pipelines.loading.checkpoint import Checkpoint
from longtake.pipelines.loading.tensor_source import SafetensorsSource
from tests.ranks import RankGroups
from tests.rendering import ALONE, ONE_RANK, Array, latents_on_one_rank, load_on, render, request
from tests.rendering import world as all_ranks
from tests.simple_loras import fused_model, save_lora
from tests.wan_rendering import wan_request

LAYERS = {
    "style": ("transformer_blocks.0.attn.to_q", "single_transformer_blocks.0.proj_out"),
    "motion": ("transformer_blocks.0.attn.to_q", "transformer_blocks.0.attn.to_v", "proj_out"),
}
Case = tuple[WeightPlace, StorageDtype | None, str]
CASES: list[Case] = [
    ("resident", None, "bfloat16"),
    ("split", "float8", "float32"),
    ("streamed", "nf4", "bfloat16"),
    ("disk", "float8", "float32"),
    ("resident", "float8", "float32"),
    ("streamed", None, "float32"),
]


class Exchange(NamedTuple):
    """What one rank did to exchange LoRAs: latents with each, and rows read of tensors for each."""

    latents: list[Array]
    rows: list[Counter[str]]


@pytest.fixture(scope="module")
def loras(model: str, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Paths of LoRAs by name."""
    folder = tmp_path_factory.mktemp("loras")
    return {
        name: str(save_lora(folder / f"{name}.safetensors", model, layers, seed))
        for seed, (name, layers) in enumerate(LAYERS.items())
    }


def exchange(
    ranks: World,
    folder: str,
    place: WeightPlace,
    storage: StorageDtype | None,
    dtype: str,
    choices: list[LoraChoice],
) -> Exchange:
    """Load a model with the first choice, exchange it for the others, and render with each."""
    loras = RankLoras(LoraMatcher(Checkpoint.open(folder), None), ranks)
    rows_read: list[Counter[str]] = []
    latents = []
    original = SafetensorsSource.read

    def recorded(source: SafetensorsSource, name: str, rows: slice | None = None) -> Any:
        tensor = original(source, name, rows)
        if source.label.endswith("transformer"):
            rows_read[-1][name] += len(tensor)
        return tensor

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(SafetensorsSource, "read", recorded)
        pipeline: VideoPipeline | None = None
        for choice in choices:
            rows_read.append(Counter())
            if pipeline is None:
                deltas = loras.prepare(choice)
                pipeline = load_on(ranks, folder, dtype, place, storage, deltas)
                loras.loaded(pipeline.denoiser.transformers)
            else:
                loras.fuse(choice)
            rows_read.append(Counter())  # what is read while rendering
            latents.append(rendered(pipeline, ranks))
    return Exchange(latents, rows_read[::2])


def rendered(pipeline: VideoPipeline, ranks: World) -> Array:
    """The latents of a small request."""
    dims = ParallelDims(ulysses_degree=ranks.size)
    resolved = request(num_inference_steps=1, num_frames=5)
    array: Array = render(pipeline, resolved, dims, ranks).numpy()
    return array


def exchange_cases(cases: list[Case], folder: str, choices: list[LoraChoice]) -> list[Exchange]:
    """On a rank: the exchange of each case."""
    return [exchange(all_ranks(), folder, *case, choices) for case in cases]


def rows_touched(place: WeightPlace, *names: str) -> set[str]:
    """Tensors that are read when these LoRAs come or go: not those of blocks that are read when
    they run."""
    layers = {layer for name in names for layer in LAYERS[name]}
    return {f"{layer}.weight" for layer in layers if place != "disk" or "blocks" not in layer}


@pytest.mark.parametrize("size", [1, 3])
def test_exchanged_as_if_loaded(
    ranks: RankGroups, model: str, loras: dict[str, str], size: int
) -> None:
    style = LoraChoice(uses=(loras["style"],))
    both = LoraChoice(uses=(f"{loras['style']}:0.5", f"{loras['motion']}:-1.5"))
    choices, cases = [NO_LORAS, style, both, NO_LORAS], CASES if size == 1 else CASES[:4]
    if size == 1:
        exchanged = [[exchange(ALONE, model, *case, choices) for case in cases]]
        started = [[exchange(ALONE, model, *case, [both]) for case in cases]]
    else:
        exchanged = ranks.run(size, exchange_cases, cases, model, choices)
        started = ranks.run(size, exchange_cases, cases, model, [both])
    for number, (place, *_) in enumerate(cases):
        of_case = [of_rank[number] for of_rank in exchanged]
        for found, from_start in zip(of_case, started, strict=True):
            none, with_style, with_both, again = found.latents
            np.testing.assert_array_equal(again, none)
            np.testing.assert_array_equal(from_start[number].latents[0], with_both)
            for one, other in ((none, with_style), (with_style, with_both), (with_both, none)):
                assert abs(one - other).max() > 1e-3
        # One rank a host reads a tensor, each rank its own rows, or the ranks blocks by turns.
        reads = [set[str]().union(*each) for each in zip(*(f.rows for f in of_case), strict=True)]
        either = rows_touched(place, "style", "motion")
        assert reads[1:] == [rows_touched(place, "style"), either, either]


def test_fused_is_what_the_definition_says(
    model: str, loras: dict[str, str], tmp_path: Path
) -> None:
    folder = fused_model(tmp_path / "fused", model, Path(loras["motion"]), 0.75)
    expected = latents_on_one_rank(folder, request(num_inference_steps=1, num_frames=5))
    fused = LoraChoice(uses=(f"{loras['motion']}:0.75",))
    started = exchange(ALONE, model, "resident", None, "float32", [fused, NO_LORAS])
    np.testing.assert_allclose(started.latents[0], expected, rtol=0, atol=1e-5)
    assert abs(started.latents[1] - started.latents[0]).max() > 1e-2
    zero = LoraChoice(uses=(f"{loras['motion']}:0",))
    at_zero = exchange(ALONE, model, "resident", None, "float32", [zero])
    np.testing.assert_array_equal(at_zero.latents[0], started.latents[1])
    assert started.rows[0] == at_zero.rows[0]  # loading with a LoRA reads no weight twice


def test_each_lora_to_its_expert(wan: Callable[[str], str], tmp_path: Path) -> None:
    folder = wan("wan22-t2v")
    layers = ("blocks.0.attn1.to_q",)
    high = save_lora(tmp_path / "high.safetensors", folder, layers, 1)
    low = save_lora(tmp_path / "low.safetensors", folder, layers, 2)
    loras = RankLoras(LoraMatcher(Checkpoint.open(folder), None), ALONE)
    size: dict[str, Any] = dict(height=48, width=80, num_frames=5, num_inference_steps=2)
    resolved = wan_request(folder, **size)
    pipeline = load_on(ALONE, folder, "float32", "resident", None, loras.prepare(NO_LORAS))
    loras.loaded(pipeline.denoiser.transformers)

    def with_loras(*uses: str) -> Array:
        loras.fuse(LoraChoice(uses=uses))
        array: Array = render(pipeline, resolved, ONE_RANK, ALONE).numpy()
        return array

    with pytest.raises(RequestError, match="does not load with load_transformer"):
        RankLoras(LoraMatcher(Checkpoint.open(folder), None), ALONE).fuse(
            LoraChoice(uses=(f"{high}@transformer",))
        )
    base = with_loras()
    first, second = with_loras(f"{high}@transformer"), with_loras(f"{low}@transformer_2")
    both = with_loras(f"{low}@transformer_2", f"{high}@transformer")
    for one, other in ((base, first), (base, second), (first, both), (second, both)):
        assert abs(one - other).max() > 1e-4
    np.testing.assert_array_equal(with_loras(f"{high}@transformer"), first)
    np.testing.assert_array_equal(with_loras(), base)
    with pytest.raises(RequestError, match="which of the model's 2 transformers"):
        with_loras(str(high))
    np.testing.assert_array_equal(with_loras(), base)


def fails_and_recovers(folder: str, lora: str, place: WeightPlace) -> tuple[str, str, bool]:
    """On a rank: the errors of a missing file and of a failing disk, and whether the base is back
    after them."""
    loras = RankLoras(LoraMatcher(Checkpoint.open(folder), None), all_ranks())
    deltas = loras.prepare(NO_LORAS)
    pipeline = load_on(all_ranks(), folder, "float32", place, None, deltas)
    loras.loaded(pipeline.denoiser.transformers)
    base = rendered(pipeline, all_ranks())
    missing = LoraChoice(uses=(lora if all_ranks().rank == 0 else f"{lora}.no",))
    with pytest.raises(RequestError) as refused:
        loras.fuse(missing)
    kept = loras.fused == NO_LORAS

    def broken(source: SafetensorsSource, name: str, rows: slice | None = None) -> Any:
        raise ModelError("the disk is gone")

    with pytest.MonkeyPatch.context() as patch, pytest.raises(EngineError) as failed:
        patch.setattr(SafetensorsSource, "read", broken)
        loras.fuse(LoraChoice(uses=(lora,)))
    assert loras.fused is None
    loras.fuse(NO_LORAS)
    same = bool((rendered(pipeline, all_ranks()) == base).all())
    return str(refused.value), str(failed.value), kept and same


def test_failures_are_those_of_all_ranks(
    ranks: RankGroups, model: str, loras: dict[str, str]
) -> None:
    outcomes = ranks.run(3, fails_and_recovers, model, loras["style"], "split")
    for refused, failed, recovered in outcomes:
        assert "(on rank 1)" in refused
        assert "\n" not in refused
        assert "the disk is gone" in failed
        assert recovered
