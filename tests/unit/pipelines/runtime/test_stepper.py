"""Steppers against whole loops of diffusers' schedulers, and resumed from their state."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler, UniPCMultistepScheduler

from longtake.pipelines.runtime.snapshots import LoopState
from longtake.pipelines.runtime.stepper import SchedulerStepper, Stepper, UniPCStepper

NUM_STEPS = 9
FLOW: dict[str, Any] = dict(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0)
UNIPC = {
    "order 2": dict(solver_order=2),
    "order 3": dict(solver_order=3),
    "order 1": dict(solver_order=1),
    "no corrector at first": dict(solver_order=2, disable_corrector=[0, 1]),
}


def unipc(num_steps: int = NUM_STEPS, **config: Any) -> UniPCMultistepScheduler:
    scheduler = UniPCMultistepScheduler(**FLOW, **config)
    scheduler.set_timesteps(num_steps)
    return scheduler


def euler() -> FlowMatchEulerDiscreteScheduler:
    scheduler = FlowMatchEulerDiscreteScheduler(shift=7.0)
    scheduler.set_timesteps(sigmas=list(np.linspace(1.0, 0.0, NUM_STEPS + 1)[:-1]))
    return scheduler


def velocity(tokens: torch.Tensor, value: float) -> torch.Tensor:
    """A velocity that depends on the tokens and the timestep."""
    return torch.sin(tokens) * (value / 1000 + 0.5)


def run(
    stepper: Stepper, tokens: torch.Tensor, done: int = 0, until: int = NUM_STEPS
) -> torch.Tensor:
    for step in stepper.steps(done):
        if step.index == until:
            break
        tokens = stepper.step(velocity(tokens, step.value), step, tokens)
    return tokens


def noise() -> torch.Tensor:
    return torch.randn(2, 5, 4, generator=torch.Generator().manual_seed(0))


def diffusers_loop(scheduler: Any, sample: torch.Tensor) -> torch.Tensor:
    for timestep in scheduler.timesteps:
        sample = scheduler.step(
            velocity(sample, float(timestep)), timestep, sample, return_dict=False
        )[0]
    return sample


@pytest.mark.parametrize("config", UNIPC.values(), ids=UNIPC)
def test_unipc_matches_diffusers(config: dict[str, Any]) -> None:
    expected = diffusers_loop(unipc(**config), noise())
    assert expected.isfinite().all()
    found = run(UniPCStepper(unipc(**config)), noise())
    torch.testing.assert_close(found, expected, rtol=0, atol=0)


@pytest.mark.parametrize("done", range(1, NUM_STEPS))
@pytest.mark.parametrize("config", UNIPC.values(), ids=UNIPC)
def test_unipc_resumes_bit_for_bit(config: dict[str, Any], done: int) -> None:
    whole = run(UniPCStepper(unipc(**config)), noise())
    first = UniPCStepper(unipc(**config))
    tokens = run(first, noise(), until=done)
    saved = LoopState(done, tokens, first.state(), first.token_state())
    saved = LoopState.of_tensors(done, saved.tensors())
    assert len(saved.tokens) <= first.num_token_states
    second = UniPCStepper(unipc(**config))
    second.resume(done, saved.scheduler, saved.tokens)
    torch.testing.assert_close(run(second, saved.latents, done), whole, rtol=0, atol=0)


def test_unipc_without_its_memory_differs() -> None:
    """The test above would find a state that is not restored."""
    whole, first = run(UniPCStepper(unipc()), noise()), UniPCStepper(unipc())
    tokens = run(first, noise(), until=4)
    second = UniPCStepper(unipc())
    second.resume(4, first.state(), {**first.token_state(), "output_1": torch.zeros_like(tokens)})
    assert (run(second, tokens, 4) - whole).abs().max() > 1e-2


def test_unipc_steps_any_part_of_the_tokens() -> None:
    whole = run(UniPCStepper(unipc()), noise())
    for part in (slice(0, 3), slice(3, 5), slice(5, 5)):
        own = run(UniPCStepper(unipc()), noise()[:, part])
        torch.testing.assert_close(own, whole[:, part], rtol=0, atol=0)


@pytest.mark.parametrize("num_steps", [1, 2, 3])
def test_unipc_with_few_steps(num_steps: int) -> None:
    expected = diffusers_loop(unipc(num_steps), noise())
    found = run(UniPCStepper(unipc(num_steps)), noise())
    torch.testing.assert_close(found, expected, rtol=0, atol=0)


@pytest.mark.parametrize("done", [1, 5])
def test_euler_remembers_nothing(done: int) -> None:
    whole = run(SchedulerStepper(euler()), noise())
    torch.testing.assert_close(whole, diffusers_loop(euler(), noise()), rtol=0, atol=0)
    first = SchedulerStepper(euler())
    tokens = run(first, noise(), until=done)
    assert first.token_state() == {} and first.num_token_states == 0
    second = SchedulerStepper(euler())
    second.resume(done, first.state(), {})
    torch.testing.assert_close(run(second, tokens, done), whole, rtol=0, atol=0)


def test_steps_know_their_index_and_value() -> None:
    steps = list(SchedulerStepper(euler()).steps(2))
    assert [step.index for step in steps] == list(range(2, NUM_STEPS))
    assert all(step.value == float(step.timestep) for step in steps)
