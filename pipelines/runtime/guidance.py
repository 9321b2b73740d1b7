"""Guidance: the transformer passes of a step, and how their velocities combine.

Legend: B videos, s this rank's tokens, P values per token.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.distributed.device_mesh import DeviceMesh

from longtake.parallel.exchange import start_send_recv
from longtake.parallel.mesh import CFG_AXIS, axis_degree, axis_rank
from longtake.pipelines.layout import VideoLayout
from longtake.pipelines.runtime.stepper import Step

Sum = Callable[[torch.Tensor], torch.Tensor]
"""Sums a tensor over the ranks that share the video; collective."""

Combine = Callable[[Sequence[torch.Tensor], Step, Sum], torch.Tensor]
"""Combines the velocities of all passes, ``[B, s, P]`` each, in the order of the passes."""


def only_pass(velocities: Sequence[torch.Tensor], step: Step, total: Sum) -> torch.Tensor:
    """The velocity of the only pass, for models that embed their guidance scale or need none."""
    (velocity,) = velocities
    return velocity


def classifier_free(scale_of: Callable[[Step], float]) -> Combine:
    """Classifier-free guidance over a positive and a negative pass, in float32.

    Args:
        scale_of: The guidance scale of a step.
    """

    def combine(velocities: Sequence[torch.Tensor], step: Step, total: Sum) -> torch.Tensor:
        positive, negative = (velocity.float() for velocity in velocities)
        return negative + scale_of(step) * (positive - negative)

    return combine


@dataclass(frozen=True)
class Guidance:
    """The passes of a step and how their velocities combine.

    Attributes:
        passes: Results of :meth:`longtake.pipelines.family.Denoiser.prepare`. With two or more, the
            first is the prompt's.
        combine: Combines the velocities of all passes.
    """

    passes: Sequence[Any]
    combine: Combine = only_pass

    def velocity(
        self, denoiser: nn.Module, tokens: torch.Tensor, step: Step, layout: VideoLayout
    ) -> torch.Tensor:
        """The guided velocity of this rank's tokens, ``[B, s, P]``.

        The passes run one after the other or, where the mesh has ``cfg`` degree 2 or more, on
        several groups of ranks at the same time.
        """
        degree = axis_degree(layout.mesh, CFG_AXIS)
        own = range(axis_rank(layout.mesh, CFG_AXIS), len(self.passes), degree)
        computed = {number: denoiser(tokens, step, self.passes[number]) for number in own}
        if degree > 1:
            assert layout.mesh is not None
            computed = _exchange(computed, len(self.passes), layout.mesh)
        velocities = [computed[number] for number in range(len(self.passes))]
        return self.combine(velocities, step, layout.sum_over_ranks)


def _exchange(
    computed: dict[int, torch.Tensor], num_passes: int, mesh: DeviceMesh
) -> dict[int, torch.Tensor]:
    """The velocities of all passes, of which pass ``n`` is computed by rank ``n % degree``."""
    degree, own = axis_degree(mesh, CFG_AXIS), axis_rank(mesh, CFG_AXIS)
    computed = {number: velocity.contiguous() for number, velocity in computed.items()}
    alike = next(iter(computed.values()))
    received = {
        number: torch.empty_like(alike) for number in range(num_passes) if number not in computed
    }
    sends = [
        (velocity, peer) for velocity in computed.values() for peer in range(degree) if peer != own
    ]
    start_send_recv(
        sends,
        [(velocity, number % degree) for number, velocity in received.items()],
        mesh.get_group(CFG_AXIS),
    )()
    return computed | received
