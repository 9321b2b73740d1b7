"""Finds the LoRAs of requests, and matches their tensors to the model's. Loads no weights."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from longtake.configs.fields.few_step import FewStep
from longtake.configs.fields.lora import LoraUse, parse_lora
from longtake.configs.loras import bundled_loras
from longtake.configs.request import Rendering
from longtake.engine.loras.choice import LoraChoice
from longtake.errors import ModelError, RequestError
from longtake.pipelines import registry
from longtake.pipelines.loading.checkpoint import Checkpoint
from longtake.pipelines.lora.lora_file import LoraFile
from longtake.pipelines.lora.match import LoraMatch, match
from longtake.pipelines.lora.targets import LoraTargets, lora_targets

SUFFIX = ".safetensors"


@dataclass(frozen=True)
class MatchedLora:
    """A LoRA of a request.

    Attributes:
        use: Its file as the request names it, scale and component.
        file: Its file.
        match: What it adds to which tensors.
    """

    use: LoraUse
    file: LoraFile
    match: LoraMatch

    def described(self) -> dict[str, Any]:
        """What the .json of a video says of it."""
        match = self.match
        return {
            "file": self.use.file,
            "sha256": self.file.sha256,
            "scale": self.use.scale,
            "names": match.layout,
            "tensors": {component: len(each) for component, each in match.deltas.items()},
            **({"left": list(match.left)} if match.left else {}),
        }


class LoraMatcher:
    """Finds LoRAs and matches them to a model.

    Args:
        checkpoint: The model's files.
        folder: The only folder from which LoRAs are taken, by name; None for any file.
    """

    def __init__(self, checkpoint: Checkpoint, folder: Path | None) -> None:
        self._checkpoint, self._folder = checkpoint, folder

    def match(self, choice: LoraChoice) -> tuple[MatchedLora, ...]:
        """The LoRAs of a choice, in its order.

        Raises:
            RequestError: A file is missing, damaged, no LoRA for this model, or has another digest.
        """
        digests = choice.sha256 or (None,) * len(choice.uses)
        if len(digests) != len(choice.uses):
            raise RequestError(
                f"lora_sha256 has {len(digests)} digests for {len(choice.uses)} LoRAs: name one "
                "for each"
            )
        found = tuple(self.match_header(each, partial=choice.partial) for each in choice.uses)
        for lora, sha256 in zip(found, digests, strict=True):
            self._check_content(lora, sha256)
        return found

    def match_header(self, text: str, *, partial: bool = False) -> MatchedLora:
        """One LoRA, without a look at its values.

        Args:
            text: ``FILE[:SCALE][@COMPONENT]``.
            partial: Whether its tensors may fit nothing in the model.

        Raises:
            RequestError: The file is missing, damaged, or no LoRA for this model.
        """
        use = parse_lora(text)
        try:
            file = LoraFile.read(self._path(use))
            return MatchedLora(use, file, match(file, use, self.targets, partial=partial))
        except (ModelError, RequestError) as error:
            raise self._refusal(use, error) from error

    def fields(self, request: Rendering) -> dict[str, Any]:
        """The fields of a resolved request that concern LoRAs.

        Names in the folder and of bundled LoRAs stay names; other paths become absolute.

        Raises:
            RequestError: As :meth:`match`.
        """
        found = self.match(LoraChoice.of(request))
        if not found:
            return {}
        return {
            "lora": tuple(str(self._named(each.use)) for each in found),
            "lora_sha256": tuple(each.file.sha256 for each in found),
        }

    def few_step(self, request: Rendering) -> list[tuple[str, FewStep | None]]:
        """The few-step settings that each LoRA's file names, by the file as the request names it.

        Those of scale 0 name none, since they change nothing.

        Raises:
            RequestError: A file's settings cannot be read.
        """
        uses = [use for use in map(parse_lora, request.lora or ()) if use.scale != 0]
        return [(use.file, self._settings(use)) for use in uses]

    def _settings(self, use: LoraUse) -> FewStep | None:
        path = self._path(use)
        try:
            return FewStep.from_metadata(LoraFile.read(path).metadata, path)
        except ModelError as error:
            raise self._refusal(use, error) from error

    def _named(self, use: LoraUse) -> LoraUse:
        path = self._path(use)
        if self._folder is not None or path == bundled_loras().get(use.file):
            return use
        return replace(use, file=str(path))

    def _path(self, use: LoraUse) -> Path:
        """The path of a LoRA's file."""
        if self._folder is None:
            # Not normalized: ".." after a link means the parent of its target.
            path = Path(os.path.join(os.getcwd(), os.path.expanduser(use.file)))
            return path if os.path.lexists(path) else bundled_loras().get(use.file, path)
        if not is_name(use.file):
            raise RequestError(
                f"lora={use.file!r} is a path: name a file of the folder of LoRAs, such as "
                f"style{SUFFIX}"
            )
        return self._folder / use.file

    def _check_content(self, lora: MatchedLora, sha256: str | None) -> None:
        """Check a LoRA's values, which must be finite, and its digest."""
        try:
            digest = lora.file.sha256
        except ModelError as error:
            raise self._refusal(lora.use, error) from error
        if sha256 is not None and sha256 != digest:
            raise RequestError(
                f"lora={lora.use.file!r} has the digest {digest[:12]}..., and lora_sha256 is "
                f"{sha256[:12]}...: name the file of that digest, or leave lora_sha256 out"
            )

    def _refusal(self, use: LoraUse, error: Exception) -> RequestError:
        """The refusal of a LoRA. Files of the folder go by their names: clients read it."""
        message = str(error) if isinstance(error, RequestError) else f"lora={use.file!r}: {error}"
        folder = "" if self._folder is None else f"{self._folder}/"
        return RequestError(message.replace(folder, "") if folder else message)

    @cached_property
    def targets(self) -> Mapping[str, LoraTargets]:
        """The tensors of the model's transformers, by component."""
        return lora_targets(self._checkpoint, registry.family_of(self._checkpoint))


def is_name(text: str) -> bool:
    """Whether a text is the printable name of a visible file, without a folder."""
    return text == os.path.basename(text) and not text.startswith(".") and text.isprintable()
