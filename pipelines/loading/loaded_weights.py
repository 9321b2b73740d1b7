"""The weights of a loaded module, of which some are read again when their source has changed."""

from __future__ import annotations

from collections.abc import Collection, Mapping

import torch

from longtake.parallel import World
from longtake.pipelines.loading.tensor_source import TensorSource
from longtake.pipelines.loading.weights import fill
from longtake.pipelines.quantization.linear import scale_of
from longtake.pipelines.streaming.stores import HostStore


class LoadedWeights:
    """Where the tensors of a source are on this rank, once a module was loaded from it.

    Args:
        source: The source.
        tensors: The module's parameters and persistent buffers by their names in the source, but
            not those of streamed blocks. A sharded one is a DTensor.
        world: All ranks.
        store: Host memory that blocks are streamed from; None without. Blocks that are streamed
            from files are read each time.
    """

    def __init__(
        self,
        source: TensorSource,
        tensors: Mapping[str, torch.Tensor],
        world: World,
        store: HostStore | None = None,
    ) -> None:
        self._source, self._tensors, self._world, self._store = source, tensors, world, store

    def reload(self, weights: Collection[str]) -> None:
        """Read weights again: whole, this rank's rows, or into the host's memory. Collective.

        No other weight is read. A weight that is stored in fewer bits is encoded again.

        Args:
            weights: Names of tensors in the files, the same on all ranks.

        Raises:
            ModelError: A tensor cannot be read. Some have their new values then, others do not.
        """
        scales = {scale_of(name) for name in weights} & self._source.tensors.keys()
        changed = {*weights, *scales}
        loaded = sorted(changed & self._tensors.keys())  # codes come before their scales
        fill(((name, self._tensors[name]) for name in loaded), self._source, self._world)
        if self._store is not None:
            self._store.reload(changed)
