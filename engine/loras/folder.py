"""The folder of LoRAs that requests may name."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from longtake.configs.fields.lora import LoraUse
from longtake.engine.loras.matching import SUFFIX, LoraMatcher, is_name
from longtake.errors import RefusedInputError


@dataclass(frozen=True)
class OfferedLora:
    """A file of the folder.

    Attributes:
        name: Its name.
        num_bytes: Its size.
        uses: What a request may write: the name, or one with each transformer that it may be for.
        problem: Why no request may name it; empty if one may.
    """

    name: str
    num_bytes: int
    uses: tuple[str, ...] = ()
    problem: str = ""


class LoraFolder:
    """A folder of LoRAs, whose files may come and go.

    Args:
        folder: The folder.
        matcher: Matches its files to the model.
    """

    def __init__(self, folder: Path, matcher: LoraMatcher) -> None:
        self._folder, self._matcher = folder, matcher
        self._known: dict[tuple[str, int, int], OfferedLora] = {}

    def offered(self) -> list[OfferedLora]:
        """The files, by name. Only headers are read, of files that are new or have changed."""
        found = {each: self._known.get(each) or self._matched(*each[:2]) for each in self._files()}
        self._known = found
        return list(found.values())

    def _files(self) -> Iterator[tuple[str, int, int]]:
        """Name, size and time of change of each file."""
        try:
            with os.scandir(self._folder) as entries:
                files = sorted(entries, key=lambda each: each.name)
                for each in files:
                    if each.name.endswith(SUFFIX) and is_name(each.name) and each.is_file():
                        status = each.stat()
                        yield each.name, status.st_size, status.st_mtime_ns
        except OSError:  # the folder, or a file of it, was removed
            return

    def _matched(self, name: str, num_bytes: int) -> OfferedLora:
        problem = ""
        for components in ([None], self._matcher.targets):
            usable = []
            for use in (LoraUse(name, component=each).at_scale_1 for each in components):
                try:
                    self._matcher.match_header(use)
                    usable.append(use)
                except RefusedInputError as error:
                    problem = problem or str(error)
            if usable:
                return OfferedLora(name, num_bytes, tuple(usable))
        return OfferedLora(name, num_bytes, problem=problem)
