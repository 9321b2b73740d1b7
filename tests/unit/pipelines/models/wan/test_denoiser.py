"""Wan's denoiser on one rank against diffusers' transformers, in float32."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from diffusers import WanTransformer3DModel

from longtake.parallel import ParallelDims
from longtake.pipelines.layout import VideoLayout
from longtake.pipelines.models.wan.tensors import FLOAT32_WEIGHTS
from longtake.pipelines.models.wan.transformer.denoiser import WanDenoiser
from longtake.pipelines.runtime.stepper import Step
from longtake.pipelines.spec import LatentGrid
from tests import tiny_wan
from tests.ranks import random_tensors
from tests.wan_denoising import (
    BOUNDARY,
    REQUEST,
    SIZES,
    Case,
    cases,
    denoiser,
    new_denoiser,
    prepare,
    transformers,
    velocity,
    velocity_of_diffusers,
)

ONE_RANK = ParallelDims()


def name_of(case: Case) -> str:
    picture = "-picture" if case.has_picture else ""
    return f"{case.kind}{picture}-{'x'.join(map(str, case.size))}"


@pytest.mark.parametrize("case", cases(*SIZES), ids=name_of)
def test_velocity_equals_diffusers(case: Case) -> None:
    expected = velocity_of_diffusers(case)
    assert expected.std() > 0.1
    torch.testing.assert_close(velocity(case, ONE_RANK), expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("kind", ["wan22-t2v", "wan22-i2v"])
@pytest.mark.parametrize("timestep", [900, 899, 900.0, 899.99])
def test_boundary_timestep_belongs_to_the_high_noise_expert(
    kind: str, timestep: float | int
) -> None:
    case = Case(kind, SIZES["18 tokens"], timestep)
    expected = velocity_of_diffusers(case)
    torch.testing.assert_close(velocity(case, ONE_RANK), expected, rtol=0, atol=1e-5)
    name = "transformer" if timestep >= BOUNDARY else "transformer_2"
    assert denoiser(kind).running_module(case.step) is denoiser(kind).experts[name]


@pytest.mark.parametrize("name", ["transformer", "transformer_2"])
def test_a_single_expert_runs_every_step(name: str) -> None:
    model = WanDenoiser({name: transformers("wan21-t2v")["transformer"]}, BOUNDARY)
    steps = [Step(0, torch.tensor(value), value) for value in (999.0, 1.0)]
    assert [model.running_module(step) for step in steps] == [model.experts[name]] * 2


def test_two_experts_without_a_boundary_run_the_first() -> None:
    """As in diffusers, where a boundary of None leaves all steps to ``transformer``."""
    model = WanDenoiser(transformers("wan22-t2v"), boundary=None)
    assert model.running_module(Step(0, torch.tensor(1.0), 1.0)) is model.experts["transformer"]


def test_chains_are_the_blocks_of_each_expert() -> None:
    model = new_denoiser("wan22-t2v")
    assert [list(chain) for chain in model.chains] == [
        list(model.expert(name).transformer.blocks) for name in ("transformer", "transformer_2")
    ]
    assert [len(chain) for chain in model.chains] == [2, 2]


def test_text_is_embedded_once_per_expert() -> None:
    """Later steps of a video use the same keys, and give the velocity of a new pass."""
    model, case = new_denoiser("wan22-i2v"), Case("wan22-i2v", SIZES["18 tokens"])
    calls: list[str] = []
    for name in model.experts:
        embedder = model.expert(name).transformer.condition_embedder.text_embedder
        embedder.register_forward_hook(
            lambda module, args, output, name=name: calls.append(name) if args[0].numel() else None
        )
    layout = VideoLayout.of(case.grid, ONE_RANK, None)
    inputs, tokens = prepare(model, case, layout), layout.split(case.latents())
    timesteps = (980, 951, 920, 700, 500)
    steps = [replace(case, timestep=timestep).step for timestep in timesteps]
    with torch.no_grad():
        found = [model(tokens, step, inputs) for step in steps]
        assert calls == ["transformer", "transformer_2"]
        for step, values in zip(steps, found, strict=True):
            assert torch.equal(values, model(tokens, step, prepare(model, case, layout)))


def test_first_frame_replaces_the_noise_of_the_model_only() -> None:
    """The velocity of its tokens does not depend on their noise, and is not zero."""
    case = Case("wan22-ti2v", SIZES["18 tokens"], has_picture=True)
    model, layout = denoiser(case.kind), VideoLayout.of(case.grid, ONE_RANK, None)
    inputs, tokens = prepare(model, case, layout), layout.split(case.latents())
    other = tokens.clone()
    num_still = case.grid.num_tokens // case.grid.tokens_shape[0]
    other[:, :num_still] += 1
    with torch.no_grad():
        one, two = (model(each, case.step, inputs) for each in (tokens, other))
    assert torch.equal(one, two)
    assert one[:, :num_still].abs().max() > 0.1


def test_image_tokens_of_two_pictures_may_stand_apart() -> None:
    """CLIP gives one row a picture, ``[2, K / 2, width]``."""
    case = Case("wan21-flf2v", SIZES["18 tokens"])
    model, layout = denoiser(case.kind), VideoLayout.of(case.grid, ONE_RANK, None)
    streams = case.streams()
    apart = {**streams, "image": streams["image"].view(2, -1, tiny_wan.IMAGE_WIDTH)}
    one, two = (model.prepare(each, layout, REQUEST, case.pictures()) for each in (streams, apart))
    assert one.image is not None and two.image is not None
    assert torch.equal(one.image, two.image)


@pytest.mark.parametrize("case", cases("18 tokens"), ids=name_of)
def test_bfloat16_equals_diffusers(case: Case, tmp_path: Path) -> None:
    """With the weights that diffusers loads: some of them stay float32."""
    tiny_wan.transformer(**case.settings).save_pretrained(tmp_path)
    theirs, ours = (
        WanTransformer3DModel.from_pretrained(tmp_path, torch_dtype=torch.bfloat16)
        for _ in range(2)
    )
    expected = velocity_of_diffusers(case, {"transformer": theirs})
    found = velocity(case, ONE_RANK, WanDenoiser({"transformer": ours}))
    assert found.dtype == torch.bfloat16
    torch.testing.assert_close(found, expected, rtol=0, atol=4e-3)


@pytest.mark.parametrize("kind", tiny_wan.KINDS)
def test_weights_in_float32_are_those_of_diffusers(kind: str, tmp_path: Path) -> None:
    tiny_wan.transformer(**tiny_wan.KINDS[kind].transformer).save_pretrained(tmp_path)
    model = WanTransformer3DModel.from_pretrained(tmp_path, torch_dtype=torch.bfloat16)
    kept = {name for name, each in model.named_parameters() if each.dtype == torch.float32}
    names = [name for name, _ in model.named_parameters()]
    assert {name for name in names if FLOAT32_WEIGHTS.search(name)} == kept
    assert 0 < len(kept) < len(names)


def test_other_patch() -> None:
    """Values of a token are ordered by channel, whatever the patch."""
    theirs, ours = (tiny_wan.transformer(patch_size=(2, 1, 3)) for _ in range(2))
    grid = LatentGrid((2, 4, 4, 3, 9), (2, 1, 3))
    layout = VideoLayout.of(grid, ONE_RANK, None)
    (latents,) = random_tensors(10, [grid.shape])
    case = Case("wan21-t2v", SIZES["18 tokens"])
    model = WanDenoiser({"transformer": ours})
    with torch.no_grad():
        inputs = model.prepare(case.streams(), layout, REQUEST, {})
        found = layout.gather(model(layout.split(latents), case.step, inputs))
        text = case.streams()["text"].expand(2, -1, -1)
        expected = theirs(latents, torch.tensor([951, 951]), text, return_dict=False)[0]
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)
