"""Tells the family, the component and the layout of a file from its tensors; without torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from longtake.configs.families import ModelFamily, installed_families, load_reference
from longtake.errors import ModelError
from longtake.pipelines.checkpoints.layout import CheckpointLayout
from longtake.pipelines.loading.files.model_files import printable
from longtake.pipelines.loading.files.tensor_files import Tensor

_WRAPPERS = (
    *("", "model.diffusion_model.", "diffusion_model.", "model.model.", "model."),
    *("module.", "_orig_mod."),
)
"""Prefixes of files that hold one component, whatever it is."""

_COMPONENTS = (
    *("transformer.", "transformer_2.", "vae.", "first_stage_model."),
    *("text_encoder.", "text_encoder_2.", "image_encoder.", "clip_vision."),
    *(f"text_encoders.{name}.transformer." for name in ("llama", "clip_l", "umt5xxl")),
)
"""Prefixes of components in files that may hold several."""

_OTHERS = ("model.diffusion_model.", "text_encoders.", *_COMPONENTS)
"""Beginnings of names that belong to another component of such a file."""

EXPERTS = ("transformer", "transformer_2")
"""Components of the transformers of a model; one with a single transformer has the first."""

_SHARED_LAYOUTS = {"transformer_2": "transformer"}
"""Components whose files have the layouts of another one."""

_SHOWN_NAMES = 3


@dataclass(frozen=True)
class Recognized:
    """What tensors are.

    Attributes:
        family: The family that renders with them.
        layout: Their layout; its ``component`` says which part of a model they are.
        prefix: What stands in front of each name that the layout declares.
    """

    family: ModelFamily
    layout: CheckpointLayout
    prefix: str

    def __str__(self) -> str:
        return f"{self.family.label}'s {self.layout.component} in {self.layout.name} layout"

    def own(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The tensors of this component, by their names without the prefix."""
        return _without_prefix(tensors, self.prefix)

    def strange(self, tensors: Mapping[str, Tensor]) -> list[str]:
        """Names of tensors that are neither of this component nor named after another one."""
        return [
            name
            for name in tensors
            if not name.startswith(self.prefix) and not name.startswith(_OTHERS)
        ]


def layouts_of(family: ModelFamily, component: str | None = None) -> list[CheckpointLayout]:
    """The layouts that files of a family's components come in.

    Args:
        family: The family.
        component: Component of a model's folder; None for all.
    """
    if not family.layouts:
        return []
    kind = None if component is None else _SHARED_LAYOUTS.get(component, component)
    return [layout for layout in load_reference(family.layouts) if kind in (None, layout.component)]


def candidates(tensors: Mapping[str, Tensor], component: str | None = None) -> list[Recognized]:
    """Everything that tensors can be.

    Of each component it is what the first known prefix makes of them, the empty one before others.

    Args:
        tensors: Tensors of a file, by name.
        component: Component of a model's folder that they are for; None for all.
    """
    found: dict[str, list[Recognized]] = {}
    prefixes = _WRAPPERS + _COMPONENTS
    own_prefix = f"{component}."
    if own_prefix in prefixes:
        prefixes = ("", own_prefix, *(each for each in prefixes if each not in ("", own_prefix)))
    for prefix in prefixes:
        own = _without_prefix(tensors, prefix)
        fits = [
            Recognized(family, layout, prefix)
            for family in installed_families().values()
            for layout in layouts_of(family, component)
            if own and layout.component not in found and layout.recognizes(own)
        ]
        for each in fits:
            found.setdefault(each.layout.component, []).append(each)
    return [each for of_component in found.values() for each in of_component]


def recognize(tensors: Mapping[str, Tensor], component: str | None = None) -> Recognized:
    """The one thing that tensors are.

    Args:
        tensors: Tensors of a file, by name.
        component: Component of a model's folder that they are for; None for any.

    Raises:
        ModelError: No layout of an installed family knows them, or several do.
    """
    found = candidates(tensors, component)
    if not found:
        raise ModelError(_unknown(tensors, component))
    if len(found) > 1:
        raise ModelError(
            f"holds {' and '.join(sorted(map(str, found)))}: one of them must be named, as in "
            f"--{found[0].layout.component.replace('_', '-')} FILE"
        )
    return found[0]


def _unknown(tensors: Mapping[str, Tensor], component: str | None) -> str:
    """Why tensors are not recognized."""
    if component is not None and (others := candidates(tensors)):
        named = sorted(map(str, others))
        return (
            f"holds {' and '.join(named)}, no {component}: name it with "
            f"--{others[0].layout.component.replace('_', '-')}"
        )
    names = ", ".join(printable(name) for name in sorted(tensors)[:_SHOWN_NAMES]) or "none"
    families = ", ".join(each.label for each in installed_families().values() if each.layouts)
    hint = "; a LoRA is named with --lora" if any("lora" in name for name in tensors) else ""
    return (
        f"holds tensors of no layout that is known here ({len(tensors)}: {names}): it must be a "
        f"{component or 'component'} of {families or 'a family with layouts'}{hint}"
    )


def _without_prefix(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    start = len(prefix)
    return {name[start:]: each for name, each in tensors.items() if name.startswith(prefix)}
