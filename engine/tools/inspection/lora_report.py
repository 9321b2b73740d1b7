"""What a LoRA is: its format, the models that it fits, and what it changes of them."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from longtake.configs.fields.few_step import FewStep
from longtake.configs.fields.lora import LoraUse
from longtake.engine.tools.inspection.models import known_models
from longtake.errors import RequestError
from longtake.pipelines import registry
from longtake.pipelines.lora.lora_file import LoraFile
from longtake.pipelines.lora.match import LoraMatch, match
from longtake.pipelines.lora.targets import LoraTargets, lora_targets


@dataclass(frozen=True)
class LoraFit:
    """A model that a LoRA changes.

    Attributes:
        model: The model.
        component: Transformer that must be named with the LoRA; None if it is the only one, or the
            file names one for each of its tensors.
        match: What is changed, and what is left.
    """

    model: str
    component: str | None
    match: LoraMatch

    @property
    def is_whole(self) -> bool:
        """Whether every tensor of the LoRA has a home."""
        return not self.match.left

    @property
    def num_changed(self) -> int:
        """Tensors of the model that are changed."""
        return sum(map(len, self.match.deltas.values()))

    def changed(self) -> list[str]:
        """Names of the changed tensors, each behind its component."""
        return [
            f"{component}.{name}" for component, own in self.match.deltas.items() for name in own
        ]


@dataclass(frozen=True)
class LoraReport:
    """A LoRA's file.

    Attributes:
        file: Its header.
        num_bytes: Its size.
        sha256: Its digest.
        few_step: Settings that it is made for; None if it names none.
        fits: Models that it changes: of those in which every tensor has a home, all; else the one
            in which most have.
        reason: Why it fits no model, if one was named; else empty.
    """

    file: LoraFile
    num_bytes: int
    sha256: str
    few_step: FewStep | None
    fits: tuple[LoraFit, ...]
    reason: str = ""

    @property
    def is_usable(self) -> bool:
        """Whether it fits a known model wholly."""
        return bool(self.fits) and self.fits[0].is_whole

    @property
    def kinds(self) -> Mapping[str, int]:
        """Number of adapters by kind, such as "lora" and "diff"."""
        return Counter(adapter.kind for adapter in self.file.adapters)

    @property
    def ranks(self) -> list[int]:
        """Ranks of the adapters, each once."""
        return sorted({each.rank for each in self.file.adapters if each.rank is not None})

    @property
    def factors(self) -> list[float]:
        """Values of alpha over rank, each once."""
        return sorted({each.factor for each in self.file.adapters if each.rank is not None})

    @property
    def has_norms(self) -> bool:
        """Whether rows of a weight are given norms of their own (DoRA)."""
        return any(adapter.sets_norms for adapter in self.file.adapters)


def report_lora(path: Path, model: str | None) -> LoraReport:
    """Describe a LoRA.

    Args:
        path: The file.
        model: Model that it should fit; None for the bundled models and the presets.

    Raises:
        ModelError: The file is damaged, an adapter is not whole, or a value is not finite; or there
            is no such model.
    """
    file = LoraFile.read(path)
    fits: list[LoraFit] = []
    reasons: list[str] = []
    for checkpoint in known_models(model):
        targets = lora_targets(checkpoint, registry.family_of(checkpoint))
        fits += _fits(file, checkpoint.model, targets, reasons)
    whole = [each for each in fits if each.is_whole]
    best = sorted(fits, key=lambda each: len(each.match.left))[:1]
    return LoraReport(
        file,
        path.stat().st_size,
        file.sha256,
        FewStep.from_metadata(file.metadata, path),
        tuple(whole or best),
        "" if fits or model is None else reasons[-1],
    )


def _fits(
    file: LoraFile, model: str, targets: Mapping[str, LoraTargets], reasons: list[str]
) -> Iterator[LoraFit]:
    """The ways to apply a LoRA to a model: by its own names, else to each of the transformers."""
    for component in (None, *(targets if len(targets) > 1 else ())):
        use = LoraUse(str(file.path), component=component)
        try:
            yield LoraFit(model, component, match(file, use, targets, partial=True))
        except RequestError as error:
            reasons.append(str(error))
            continue
        if component is None:
            return


def patterns(names: Iterable[str]) -> Mapping[str, int]:
    """Number of names by what they are with an asterisk for the layer's number, in their order."""
    return Counter(re.sub(r"\.\d+(?=\.)", ".*", name, count=1) for name in names)
