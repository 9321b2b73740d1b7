"""Where the expert that does not run rests: on the device, or in pinned host memory."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from longtake.errors import ModelError, one_line
from longtake.pipelines.models.wan.costs import RESIDENT_SHARE

_ALIGNMENT = 256


def both_fit(num_bytes: int, device: torch.device) -> bool:
    """Whether all experts stay on the device; otherwise :class:`ExpertSwap` holds one of them.

    Args:
        num_bytes: Size of the weights of all experts.
        device: The rank's device. On the CPU there is nowhere else to rest.
    """
    if device.type != "cuda":
        return True
    return num_bytes <= RESIDENT_SHARE * torch.cuda.get_device_properties(device).total_memory


class ExpertSwap:
    """Keeps the running expert on the device, and the other one in pinned host memory.

    The experts change places tensor by tensor, so the device holds one tensor more than one expert,
    and the host one expert. Tensors are only copied: results are the same to the bit. A video takes
    one exchange, at the boundary; the next video another one, before its first step.

    Args:
        resting: The expert that rests first, with its weights on any device.
        running: The other expert; its weights may be loaded later.
        device: The rank's device.

    Raises:
        ModelError: The experts differ in size.
    """

    def __init__(self, resting: nn.Module, running: nn.Module, device: torch.device) -> None:
        _check_same_sizes(resting, running)
        self._resting, self._running = resting, running
        self._device = device
        weights = _weights(resting)
        for tensor, copy in zip(weights, _host_copies(weights, device), strict=True):
            tensor.data = copy

    def bring_to_device(self, expert: nn.Module) -> None:
        """Exchange the experts, unless ``expert`` is the running one."""
        if expert is self._running:
            return
        pairs = zip(_weights(self._resting), _weights(self._running), strict=True)
        for resting, running in pairs:
            arriving = resting.data.to(self._device, non_blocking=True, copy=True)
            place = resting.data.copy_(running.data, non_blocking=True)
            resting.data, running.data = arriving, place
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)  # the host may read its tensors from here on
        self._resting, self._running = self._running, self._resting


def _weights(module: nn.Module) -> list[torch.Tensor]:
    return [*module.parameters(), *module.buffers()]


def _host_copies(tensors: Sequence[torch.Tensor], device: torch.device) -> list[torch.Tensor]:
    """Copies in one buffer: torch rounds each pinned allocation up to a power of two."""
    sizes = [-(-tensor.nbytes // _ALIGNMENT) * _ALIGNMENT for tensor in tensors]
    try:
        buffer = torch.empty(sum(sizes), dtype=torch.uint8, pin_memory=device.type == "cuda")
    except RuntimeError as error:
        raise ModelError(
            f"the host has no {sum(sizes) / 2**30:.1f} GiB of pinned memory for the expert that "
            f"rests, one on each rank: split the weights over ranks ({one_line(error)[:100]})"
        ) from error
    copies = []
    for tensor, place in zip(tensors, buffer.split(sizes), strict=True):
        copy = place[: tensor.nbytes].view(tensor.dtype).view(tensor.shape)
        copies.append(copy.copy_(tensor))
    return copies


def _check_same_sizes(resting: nn.Module, running: nn.Module) -> None:
    sizes = [[weights.shape for weights in _weights(expert)] for expert in (resting, running)]
    if sizes[0] != sizes[1]:
        raise ModelError(
            "transformer and transformer_2 differ in size, so one cannot take the other's place on "
            "the GPU: split the weights over ranks"
        )
