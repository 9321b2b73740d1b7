"""The adapters in a LoRA's file, told from the names and shapes of its tensors; without torch."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

from longtake.errors import ModelError
from longtake.pipelines.loading.files.model_files import printable
from longtake.pipelines.loading.files.tensor_files import FLOAT_DTYPES, Tensor
from longtake.pipelines.lora.change_shapes import shape_of_change
from longtake.pipelines.lora.part_names import ChangeParts, Kind, Leaf

_DTYPES = (*FLOAT_DTYPES, "F8_E4M3", "F8_E5M2")


@dataclass(frozen=True)
class Adapter:
    """What a file holds for one tensor of a module: a change of its values.

    Attributes:
        module: Name of the module, as the file spells it.
        leaf: Which tensor of the module is changed.
        kind: How the change is computed from its parts.
        parts: Name in the file of each part, such as "up", "w1_a", "alpha" or "magnitude".
        shape: Rows and columns of the change: output values, and input values; of a convolution,
            input channels times the size of its kernel.
        rank: Rank of the change; None if it is not of low rank.
        factor: What the change is multiplied by: alpha over rank.
    """

    module: str
    leaf: Leaf
    kind: Kind
    parts: Mapping[str, str]
    shape: tuple[int, int]
    rank: int | None = None
    factor: float = 1.0

    @property
    def sets_norms(self) -> bool:
        """Whether the rows of the changed weight are given norms of their own (DoRA)."""
        return "magnitude" in self.parts


def build_adapters(
    groups: Mapping[tuple[str, Leaf], ChangeParts],
    tensors: Mapping[str, Tensor],
    factor_of: Callable[[str, int], float],
    label: str,
) -> tuple[Adapter, ...]:
    """The adapters of a file: those of weights, then those of biases.

    Args:
        groups: The parts of each change, by module and leaf.
        tensors: The tensors of the file, by name.
        factor_of: What a module's change of a rank is multiplied by.
        label: Name of the file, for the error.

    Raises:
        ModelError: A part is missing, of an unknown dtype, or does not fit the others.
    """
    weights: dict[str, Adapter] = {}
    others = []
    for module, leaf in sorted(groups, key=lambda key: key[1] != "weight"):
        try:
            adapter = _build(module, leaf, groups[module, leaf], tensors, factor_of)
            if leaf == "weight":
                weights[module] = adapter
                continue
            if "lora" in groups[module, leaf].kinds:  # the bias of lora_B
                if module not in weights:
                    raise ValueError("has a bias of lora_B, and no lora_B")
                adapter = replace(adapter, factor=weights[module].factor)
            others.append(adapter)
        except ValueError as error:
            raise ModelError(
                f"{label} cannot be applied: {printable(module)} {error}; download it again"
            ) from error
    return (*weights.values(), *others)


def _build(
    module: str,
    leaf: Leaf,
    group: ChangeParts,
    tensors: Mapping[str, Tensor],
    factor_of: Callable[[str, int], float],
) -> Adapter:
    """One adapter; raises ValueError for parts that make none."""
    if len(group.kinds) > 1:
        raise ValueError(f"has parts of {' and '.join(sorted(group.kinds))}")
    kind: Kind = "diff" if "diff" in group.names else next(iter(group.kinds))
    found = {part: tensors[name] for part, name in group.names.items() if part != "alpha"}
    for part, tensor in found.items():
        if tensor.dtype not in _DTYPES:
            raise ValueError(f"has {part} as {tensor.dtype}, not one of {', '.join(_DTYPES)}")
    if kind == "diff" and "alpha" in group.names:
        raise ValueError("has an alpha, and nothing of low rank")
    shape, rank = shape_of_change(kind, {part: each.shape for part, each in found.items()})
    factor = 1.0 if rank is None else factor_of(module, rank)
    return Adapter(module, leaf, kind, group.names, shape, rank, factor)
