"""The files of a model's folder as its publisher arranges them; without torch."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase


@dataclass(frozen=True)
class FolderLayout:
    """Which files of a publisher's folder hold which component of a model.

    Attributes:
        name: Name of the layout in messages, such as "Wan's own".
        files: By component, patterns of the paths of its files in the folder, as of
            :mod:`fnmatch`. The files are those that match the first pattern that any matches.
    """

    name: str
    files: Mapping[str, tuple[str, ...]]

    def find(self, paths: Collection[str]) -> dict[str, tuple[str, ...]]:
        """The files of each component that the folder holds, sorted.

        Args:
            paths: Paths of all files of the folder, relative to it, with ``/`` between parts.
        """
        found = {component: self._find(component, paths) for component in self.files}
        return {component: files for component, files in found.items() if files}

    def recognizes(self, paths: Collection[str]) -> bool:
        """Whether the folder holds a transformer and another component in this layout."""
        found = self.find(paths)
        return "transformer" in found and len(found) > 1

    def _find(self, component: str, paths: Collection[str]) -> tuple[str, ...]:
        for pattern in self.files[component]:
            if matching := sorted(path for path in paths if fnmatchcase(path, pattern)):
                return tuple(matching)
        return ()
