"""Says what a file of weights is, which models it is for, and what would be applied to what."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from longtake.engine.tools.inspection.checkpoint_report import CheckpointReport, report_checkpoint
from longtake.engine.tools.inspection.lora_report import LoraReport, report_lora
from longtake.errors import ModelError
from longtake.pipelines.checkpoints.folders import PublisherFolder
from longtake.pipelines.checkpoints.formats.headers import read_headers
from longtake.pipelines.checkpoints.part_files import SeveralFilesError, files_of, shown
from longtake.pipelines.checkpoints.presets import find_model, publisher_of
from longtake.pipelines.lora.part_names import group_parts

__all__ = ["CheckpointReport", "FolderReport", "LoraReport", "inspect_path"]


@dataclass(frozen=True)
class FolderReport:
    """A folder as its publisher arranges a model in it.

    Attributes:
        path: What the user named.
        publisher: Name of the arrangement.
        preset: Preset that gives what the folder does not hold; empty if it cannot be told.
        problem: Why the folder cannot be named as a model; empty if it can.
        parts: Its components.
    """

    path: Path
    publisher: str
    preset: str
    problem: str
    parts: tuple[CheckpointReport, ...]

    @property
    def is_usable(self) -> bool:
        """Whether all of it can be used."""
        return not self.problem and all(each.is_usable for each in self.parts)


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
    publisher = publisher_of(path) if os.path.isdir(path) else None
    if publisher is not None:
        return _report_folder(path, publisher, model)
    try:
        files = files_of(path)
    except SeveralFilesError as several:
        return _report_together(path, several, model)
    headers = read_headers(*files)
    adapters, _ = group_parts(headers.tensors, shown(path))
    if adapters:
        return report_lora(files[0], model)
    return report_checkpoint(path, headers, model)


def _report_together(path: Path, several: SeveralFilesError, model: str | None) -> CheckpointReport:
    """Describe a component that is spread over a few files."""
    if not several.files:
        raise several
    try:
        report = report_checkpoint(path, read_headers(*several.files), model)
    except ModelError:
        raise several from None
    if len(report.components) != 1 or report.components[0].problem:
        raise several
    return report


def _report_folder(path: Path, publisher: PublisherFolder, model: str | None) -> FolderReport:
    """Describe a publisher's folder, each of its components for itself."""
    parts = [
        report_checkpoint(file, read_headers(*files_of(file)), model)
        for file in dict.fromkeys(publisher.find(path).values())
    ]
    preset = problem = ""
    try:
        found = find_model(path)
        preset = "" if found is None else found.preset
    except ModelError as error:
        problem = str(error)
    return FolderReport(path, publisher.name, preset, problem, tuple(parts))
