"""Predicts the duration of a layout's collectives, with all groups of a kind at once."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

from longtake.configs.hardware import Hardware
from longtake.engine.planning.network import Network
from longtake.engine.planning.training.layouts import Axis, TrainingLayout

_Devices = npt.NDArray[np.int64]
_COPIES: tuple[Axis, ...] = ("data", "ring", "ulysses")


@dataclass(frozen=True)
class Collectives:
    """The exchanges of one layout.

    An all-gather and a reduce-scatter are rings, of which NCCL makes one through each port of a
    node; an all-reduce is both.

    Args:
        hardware: The hardware profile.
        layout: The layout.
    """

    hardware: Hardware
    layout: TrainingLayout

    @cached_property
    def _network(self) -> Network:
        return Network(self.hardware)

    def gather_over_copies_s(self, num_bytes: float) -> float:
        """Seconds of an all-gather, or a reduce-scatter, of the parameters' holders.

        Args:
            num_bytes: Size of the whole buffer.
        """
        return self._gather_s(self.layout.groups(*_COPIES), num_bytes)

    def gather_over_tensor_s(self, num_bytes: float) -> float:
        """Seconds of an all-gather, or a reduce-scatter, of each tensor group.

        Args:
            num_bytes: Size of the whole buffer.
        """
        return self._gather_s(self.layout.groups("tensor"), num_bytes)

    def all_to_all_s(self, pair_bytes: float) -> float:
        """Seconds of an all-to-all of each Ulysses group.

        Args:
            pair_bytes: Bytes from each rank to each other.
        """
        groups = self.layout.groups("ulysses")
        size = groups.shape[1]
        senders, receivers = np.repeat(groups, size, axis=1), np.tile(groups, (1, size))
        return self._seconds(senders, receivers, pair_bytes)

    def ring_s(self, num_bytes: float, distance: int = 1) -> float:
        """Seconds in which every rank sends a block to a rank of its ring.

        Args:
            num_bytes: Size of the block.
            distance: Ranks between sender and receiver, along the ring.
        """
        groups = self.layout.groups("ring")
        return self._seconds(groups, np.roll(groups, -distance, axis=1), num_bytes)

    def next_stage_s(self, num_bytes: float) -> float:
        """Seconds in which every stage sends a tensor to the next one."""
        groups = self.layout.groups("pipeline")
        return self._seconds(groups[:, :-1], groups[:, 1:], num_bytes)

    def _gather_s(self, groups: _Devices, num_bytes: float) -> float:
        size = groups.shape[1]
        if size == 1 or num_bytes == 0:
            return 0.0
        sent = num_bytes * (size - 1) / size
        nodes = groups // self.hardware.devices_per_node
        members = np.count_nonzero(nodes == nodes[:, :1], axis=1)
        local = int(members[0])
        in_order = nodes.reshape(len(nodes), -1, local) if size % local == 0 else None
        if in_order is None or (members != local).any() or (np.ptp(in_order, axis=2) > 0).any():
            return self._seconds(groups, np.roll(groups, -1, axis=1), sent)
        by_node = groups.reshape(len(groups), -1, local)  # [groups, nodes, members in a node]
        rows = [_rows(by_node, np.roll(by_node, -1, axis=2), sent)]
        if local < size:  # one ring for each member, which leaves the node through its port
            rows[0][:, 2] *= (local - 1) / local
            rows.append(_rows(by_node, np.roll(by_node, -1, axis=1), sent / local))
        return self._network.seconds(np.concatenate(rows))

    def _seconds(self, senders: _Devices, receivers: _Devices, num_bytes: float) -> float:
        return self._network.seconds(_rows(senders, receivers, num_bytes))


def _rows(senders: _Devices, receivers: _Devices, num_bytes: float) -> npt.NDArray[np.float64]:
    """Rows of sender, receiver, bytes."""
    sizes = np.full(senders.size, num_bytes)
    return np.stack([senders.ravel(), receivers.ravel(), sizes], axis=1)
