"""LoRAs wherever weights live and on any ranks: the latents of a model that was saved with them."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from longtake.configs.fields.weights import StorageDtype, WeightPlace
from longtake.configs.request import ResolvedRequest
from longtake.parallel import ParallelDims
from longtake.pipelines import registry
from longtake.pipelines.family import VideoPipeline
from longtake.pipelines.loading.checkpoint import Checkpoint
from longtake.pipelines.loading.plan import ComponentPlan, LoadPlan
from longtake.pipelines.lora.match import combine
from longtake.pipelines.lora.source import LoraSource
from tests import lora_files
from tests.lora_files import TENCENT, WAN, WAN_PICTURES, write
from tests.lora_targets import Transformer
from tests.ranks import RankGroups
from tests.rendering import (
    ALONE,
    ONE_RANK,
    Array,
    image_request,
    latents_on_one_rank,
    render,
    request,
    world,
)
from tests.wan_rendering import wan_request

ON_THREE = ParallelDims(ulysses_degree=3)
EXPERTS: dict[str, Any] = dict(height=48, width=80, num_frames=5, num_inference_steps=4)


@dataclass(frozen=True)
class Case:
    """A model, its LoRAs, and the model that was saved with them.

    Attributes:
        folder: Folder of the model.
        loras: A LoRA of each transformer, and what follows its name.
        fused: Folder of the model whose weights have the LoRAs added.
        resolved: A request.
    """

    folder: str
    loras: tuple[tuple[str, str], ...]
    fused: str
    resolved: ResolvedRequest


def make_case(folder: str, target: Path, modules: Mapping[str, Any], resolved: Any) -> Case:
    """Write a LoRA for each transformer of a model, and save the model with them."""
    shutil.copytree(folder, target / "fused")
    transformer = Transformer(folder)
    loras = []
    for number, component in enumerate(transformer.targets):
        source = Checkpoint.open(folder).source(component)
        base = {name: source.read(name) for name in source.tensors}
        formula = (lora_files.KOHYA, lora_files.lokr("whole", "low"))[number]
        path = write(base, modules, formula).save(target / f"{component}.safetensors")
        end = f":{0.5 + number}" + (f"@{component}" if len(transformer.targets) > 1 else "")
        loras.append((str(path), end))
        fused = LoraSource(source, combine([transformer.match(path, end)])[component])
        (file,) = (target / "fused" / component).glob("*.safetensors")
        save_file({name: fused.read(name) for name in source.tensors}, file)
    return Case(folder, tuple(loras), str(target / "fused"), resolved)


@pytest.fixture(scope="module")
def cases(
    model: str,
    animators: dict[str, str],
    wan: Callable[[str], str],
    tmp_path_factory: pytest.TempPathFactory,
) -> dict[str, Case]:
    def made(name: str, folder: str, modules: Mapping[str, Any], resolved: Any) -> Case:
        return make_case(folder, tmp_path_factory.mktemp(name), modules, resolved)

    animator, picture = animators["token_replace"], ("image",)
    t2v, i2v = (wan(kind) for kind in ("wan22-t2v", "wan21-i2v"))
    unembedded = {name: owns for name, owns in TENCENT.items() if "guidance" not in name}
    return {
        "hunyuan": made("hunyuan", model, TENCENT, request(num_inference_steps=2)),
        "hunyuan i2v": made(
            "hunyuan-i2v", animator, unembedded, image_request(num_inference_steps=2)
        ),
        "wan experts": made("wan-experts", t2v, WAN, wan_request(t2v, **EXPERTS)),
        "wan i2v": made("wan-i2v", i2v, WAN_PICTURES, wan_request(i2v, picture, **EXPERTS)),
    }


@lru_cache(maxsize=2)
def load(
    case: Case,
    on_ranks: bool,
    dtype: str,
    place: WeightPlace,
    storage: StorageDtype | None,
) -> VideoPipeline:
    """Load a model with LoRAs."""
    checkpoint, transformer = Checkpoint.open(case.folder), Transformer(case.folder)
    matches = [transformer.match(Path(path), end) for path, end in case.loras]
    plan = LoadPlan.resident(getattr(torch, dtype))
    weights = ComponentPlan(plan.transformer.dtype, place, storage, combine(matches))
    ranks = world() if on_ranks else ALONE
    return registry.load(checkpoint, ranks, replace(plan, transformer=weights))


def latents(
    case: Case,
    dims: ParallelDims,
    places: list[tuple[WeightPlace, StorageDtype | None]],
    dtype: str = "float32",
) -> list[Array]:
    """The latents of a case with the weights in each of several places; on a rank, or alone."""
    on_ranks = dims.world_size > 1
    arrays: list[Array] = []
    for place, storage in places:
        pipeline = load(case, on_ranks, dtype, place, storage)
        on = world() if on_ranks else ALONE
        arrays.append(render(pipeline, case.resolved, dims, on).numpy())
    return arrays


Places = list[tuple[WeightPlace, StorageDtype | None]]


@pytest.mark.parametrize("kind", ["hunyuan i2v", "wan experts"])
def test_on_one_rank_to_the_bit(cases: dict[str, Case], kind: str) -> None:
    case = cases[kind]
    places: Places = [("resident", None), ("streamed", None), ("disk", None), ("disk", "float8")]
    found = latents(case, ONE_RANK, places, "bfloat16")
    expected = {
        storage: latents_on_one_rank(case.fused, case.resolved, "bfloat16", storage=storage)
        for _, storage in places
    }
    for (_, storage), each in zip(places, found, strict=True):
        np.testing.assert_array_equal(each, expected[storage])
    without = latents_on_one_rank(case.folder, case.resolved, "bfloat16")
    assert abs(found[0] - without).max() > 0.1


@pytest.mark.parametrize("kind", ["hunyuan", "wan experts", "wan i2v"])
def test_on_three_ranks(ranks: RankGroups, cases: dict[str, Case], kind: str) -> None:
    case = cases[kind]
    places: Places = [("resident", None), ("split", None), ("streamed", None), ("split", "float8")]
    expected, coarse = (
        latents_on_one_rank(case.fused, case.resolved, storage=storage)
        for storage in (None, "float8")
    )
    for whole, split, streamed, stored in ranks.run(3, latents, case, ON_THREE, places):
        np.testing.assert_array_equal(split, whole)
        np.testing.assert_array_equal(streamed, whole)
        np.testing.assert_allclose(whole, expected, rtol=0, atol=1e-5)
        np.testing.assert_allclose(stored, coarse, rtol=0, atol=1e-5)
