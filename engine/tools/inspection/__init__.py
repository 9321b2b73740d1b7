"""Says what a file of weights is, which models it is for, and what would be applied to what."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from longtake.engine.tools.inspection.checkpoint_report import CheckpointReport, report_checkpoint
from longtake.engine.tools.inspection.lora_report import LoraReport, report_lora
from longtake.pipelines.checkpoints.folders import find_model
from longtake.pipelines.checkpoints.formats.headers import read_headers
from longtake.pipelines.checkpoints.part_files import files_of, holds_weights, shown
from longtake.pipelines.lora.part_names import group_parts

__all__ = ["CheckpointReport", "FolderReport", "LoraReport", "inspect_path"]


@dataclass(frozen=True)
class FolderReport:
    """A folder in which a publisher releases a model.

    Attributes:
        path: What the user named.
        preset: Preset that gives what the folder does not hold.
        parts: Its files.
    """

    path: Path
    preset: str
    parts: tuple[CheckpointReport, ...]

    @property
    def is_usable(self) -> bool:
        """Whether all of it can be used."""
        return all(each.is_usable for each in self.parts)


def inspect_path(
    path: Path, model: str | None = None
) -> CheckpointReport | FolderReport | LoraReport:
    """Read the headers of a file, and find out what it is.

    Of a LoRA its values are read, too, and checked to be finite.

    Args:
        path: A LoRA; a file of weights, the index of shards, or the folder of either; or a
            publisher's folder.
        model: Model that it should fit; None for the bundled models and the presets.

    Raises:
        ModelError: The path is nothing of that, a file is damaged or of an unknown format, or its
            tensors are of no known layout; or there is no such model.
    """
    found = find_model(path) if os.path.isdir(path) and not holds_weights(path) else None
    if found is not None:
        parts = sorted({*found.parts.values()})
        return FolderReport(
            path,
            found.preset,
            tuple(report_checkpoint(file, read_headers(*files_of(file)), model) for file in parts),
        )
    files = files_of(path)
    headers = read_headers(*files)
    adapters, _ = group_parts(headers.tensors, shown(path))
    if adapters:
        return report_lora(files[0], model)
    return report_checkpoint(path, headers, model)
