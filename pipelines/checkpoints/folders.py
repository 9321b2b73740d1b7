"""How publishers arrange the files of a model in a folder of their own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class PublisherFolder:
    """A folder as its publisher arranges a model in it.

    Attributes:
        name: Name of the arrangement in messages, such as "the publisher's own".
        files: Patterns of paths of files of weights by component. The files are those that match
            the first pattern that any matches.
        folders: Paths of the folders of components without weights, such as tokenizers.
    """

    name: str
    files: Mapping[str, tuple[str, ...]]
    folders: Mapping[str, str]

    def find(self, folder: Path) -> dict[str, Path]:
        """The file of each component with weights, or the folder of several; empty for a folder
        that does not hold a transformer and another component in this arrangement."""
        found = {name: self._find(folder, patterns) for name, patterns in self.files.items()}
        parts = {name: path for name, path in found.items() if path is not None}
        return parts if "transformer" in parts and len(parts) > 1 else {}

    def find_folders(self, folder: Path) -> dict[str, Path]:
        """The folders of components without weights."""
        paths = {name: folder / path for name, path in self.folders.items()}
        return {name: path for name, path in paths.items() if path.is_dir()}

    def _find(self, folder: Path, patterns: Sequence[str]) -> Path | None:
        for pattern in patterns:
            if matching := sorted(folder.glob(pattern)):
                return matching[0] if len(matching) == 1 else matching[0].parent
        return None
