"""Reads headers of safetensors files; without torch."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

from longtake.pipelines.checkpoints.formats.stored_file import StoredFile
from longtake.pipelines.loading.files.model_files import read_header


def read_safetensors(path: Path) -> StoredFile:
    """Read the header of a safetensors file.

    Raises:
        ModelError: The file is missing or damaged.
    """
    file = read_header(path)
    values = 8 + len(file.header)
    tensors = {
        name: replace(each, offsets=(values + each.offsets[0], values + each.offsets[1]))
        for name, each in file.tensors.items()
    }
    metadata = json.loads(file.header).get("__metadata__") or {}
    return StoredFile(path, "safetensors", tensors, file.header, metadata)
