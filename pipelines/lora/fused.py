"""A loaded transformer whose LoRAs are exchanged while it stays loaded."""

from __future__ import annotations

from longtake.pipelines.loading.loaded_weights import LoadedWeights
from longtake.pipelines.lora.match import Deltas
from longtake.pipelines.lora.source import LoraSource


class FusedTransformer:
    """A transformer with the LoRAs that are fused into its weights.

    Args:
        source: What the weights are read from: the LoRAs over the transformer's files.
        weights: The weights that were loaded from it.
    """

    def __init__(self, source: LoraSource, weights: LoadedWeights) -> None:
        self._source, self._weights = source, weights
        self._outdated: set[str] = set()

    def fuse(self, deltas: Deltas) -> None:
        """Fuse LoRAs in place of the earlier ones. Collective: all ranks call it.

        Only weights that either of them change are read again, from their files: without LoRAs they
        are those of the files to the bit.

        Args:
            deltas: What the LoRAs add, the same on all ranks; nothing restores the transformer.

        Raises:
            ModelError: A file cannot be read. The next call starts over.
        """
        self._outdated |= self._source.touched
        self._source.apply(deltas)
        self._outdated |= self._source.touched
        self._weights.reload(self._outdated)
        self._outdated.clear()
