"""The transformers of a model, and their weights with a LoRA."""

from __future__ import annotations

from pathlib import Path

import torch

from longtake.configs.fields.lora import parse_lora
from longtake.pipelines.loading.checkpoint import Checkpoint
from longtake.pipelines.lora.lora_file import LoraFile
from longtake.pipelines.lora.match import Deltas, LoraMatch, combine, match
from longtake.pipelines.lora.source import LoraSource
from longtake.pipelines.lora.targets import lora_targets
from longtake.pipelines.registry import family_of
from tests.lora_files import Written


class Transformer:
    """The transformers of a model; ``source`` and ``base`` are of one of them.

    Args:
        folder: The model's folder.
    """

    def __init__(self, folder: str) -> None:
        checkpoint = Checkpoint.open(folder)
        self.targets = lora_targets(checkpoint, family_of(checkpoint))
        self.source = checkpoint.source("transformer")
        self.base = {name: self.source.read(name) for name in self.source.tensors}

    def match(self, path: Path, use: str = "", *, partial: bool = False) -> LoraMatch:
        """Where the adapters of a file belong; ``use`` is what follows its name."""
        return match(LoraFile.read(path), parse_lora(f"{path}{use}"), self.targets, partial=partial)

    def with_loras(self, *matches: LoraMatch) -> LoraSource:
        """The weights with LoRAs."""
        return LoraSource(self.source, combine(matches).get("transformer", {}))

    def deltas(self, *matches: LoraMatch) -> Deltas:
        """What LoRAs add."""
        return combine(matches)["transformer"]

    def check(self, written: Written, path: Path, scale: float = 0.5) -> None:
        """Check that weights are those of the base plus the change; all others to the bit."""
        source = self.with_loras(self.match(written.save(path), f":{scale}"))
        assert source.touched == written.added.keys()
        for name, before in self.base.items():
            fused = source.read(name)
            if name not in written.added:
                assert fused.dtype == before.dtype and torch.equal(fused, before), name
                continue
            assert fused.dtype == torch.float32
            expected = before.double() + scale * written.added[name]
            assert (expected - before).abs().max() > 0.01, name
            torch.testing.assert_close(fused.double(), expected, rtol=0, atol=2e-6, msg=name)
