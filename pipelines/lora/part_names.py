"""What the tensors of a LoRA's file are part of, told from their names.

The spellings are those of peft, diffusers, kohya's scripts, LyCORIS and lightx2v.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Literal

from longtake.errors import ModelError
from longtake.pipelines.loading.files.model_files import printable

Kind = Literal["lora", "loha", "lokr", "diff"]
"""How a change is computed from its parts: up @ down (lora), the product of two such, value by
value (loha), their Kronecker product (lokr), or as it stands (diff)."""

Leaf = Literal["weight", "bias", "modulation"]
"""Which tensor of a module is changed."""

_MAX_LENGTH = 1024

_PEFT = r"(?:\.\w+)?"  # peft puts the name of an adapter there
_SUFFIXES: tuple[tuple[str, Leaf, Kind | None, str], ...] = (
    (rf"\.lora_A(?:{_PEFT}\.weight)?", "weight", "lora", "down"),
    (rf"\.lora_B(?:{_PEFT}\.weight)?", "weight", "lora", "up"),
    (r"(?:\.lora_|[._]lora\.)down\.weight", "weight", "lora", "down"),
    (r"(?:\.lora_|[._]lora\.)up\.weight", "weight", "lora", "up"),
    (r"\.lora_mid\.weight", "weight", "lora", "mid"),
    (rf"\.lora_B{_PEFT}\.bias", "bias", "lora", "diff"),
    *((rf"\.hada_{part}", "weight", "loha", part) for part in ("w1_a", "w1_b", "w2_a", "w2_b")),
    *((rf"\.hada_{part}", "weight", "loha", part) for part in ("t1", "t2")),
    *((rf"\.lokr_{part}", "weight", "lokr", part) for part in ("w1", "w1_a", "w1_b")),
    *((rf"\.lokr_{part}", "weight", "lokr", part) for part in ("w2", "w2_a", "w2_b", "t2")),
    (r"\.(?:diff|w_norm)", "weight", "diff", "diff"),
    (r"\.(?:diff_b|b_norm)", "bias", "diff", "diff"),
    (r"\.diff_m", "modulation", "diff", "diff"),
    (r"\.alpha", "weight", None, "alpha"),
    (rf"\.(?:dora_scale|lora_magnitude_vector{_PEFT}(?:\.weight)?)", "weight", None, "magnitude"),
)
"""Pattern of what follows a module's name; the leaf, the kind and the part that it stands for."""

_PATTERNS = [(re.compile(rf"{each[0]}\Z"), each[1:]) for each in _SUFFIXES]


@dataclass
class ChangeParts:
    """The parts of one change.

    Attributes:
        kinds: Kinds of change that they are parts of; alpha and magnitude are parts of any.
        names: Name in the file of each part.
    """

    kinds: set[Kind] = field(default_factory=set)
    names: dict[str, str] = field(default_factory=dict)


def group_parts(
    names: Iterable[str], label: str
) -> tuple[dict[tuple[str, Leaf], ChangeParts], list[str]]:
    """Sort the tensors of a file by what they change.

    Args:
        names: Names of the tensors.
        label: Name of the file, for the error.

    Returns:
        The parts of each change, by module and leaf; and the names that are part of none.

    Raises:
        ModelError: A part is there twice, or a name is longer than 1024 characters.
    """
    groups: dict[tuple[str, Leaf], ChangeParts] = {}
    others = []
    for name in names:
        if len(name) > _MAX_LENGTH:
            raise ModelError(
                f"{label} holds {printable(name)}, a name of {len(name)} characters: "
                f"{_MAX_LENGTH} are the most that are read"
            )
        found = _parse(name)
        if found is None:
            others.append(name)
            continue
        module, leaf, kind, part = found
        group = groups.setdefault((module, leaf), ChangeParts())
        if part in group.names:
            raise ModelError(
                f"{label} holds {printable(name)} and {printable(group.names[part])}, the same "
                "part of two adapters: save one adapter in a file"
            )
        group.names[part] = name
        group.kinds |= set() if kind is None else {kind}
    for key in [key for key, group in groups.items() if not group.kinds]:
        others += groups.pop(key).names.values()
    return groups, others


def _parse(name: str) -> tuple[str, Leaf, Kind | None, str] | None:
    """Module, leaf, kind and part of a tensor by its name; None if it is part of no change."""
    for pattern, meaning in _PATTERNS:
        if (found := pattern.search(name)) and found.start() > 0:
            return name[: found.start()], *meaning
    return None
