"""Shapes of the changes that adapters make, from those of their parts; without torch.

Definitions: LoRA (arXiv 2106.09685), DoRA (2402.09353), LoHa (2108.06098) and LoKr (2309.14859), as
peft and LyCORIS store them.

Legend: R rows and C columns of the change, which are output and input values; r the rank. Of a
convolution, I input channels and K the sizes of the kernel: C is their product.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

from longtake.pipelines.lora.part_names import Kind

MAX_RANK = 4096

Shapes = Mapping[str, tuple[int, ...]]
Change = tuple[tuple[int, int], int | None]
"""R and C of a change, and its rank, if it has one."""


def shape_of_change(kind: Kind, shapes: Shapes) -> Change:
    """Rows and columns of a change, and its rank.

    Args:
        kind: Kind of the change.
        shapes: Shapes of its parts.

    Raises:
        ValueError: A part is missing, superfluous, or does not fit the others; the message goes on
            after the module's name.
    """
    parts = dict(shapes)
    magnitude = parts.pop("magnitude", None)
    change, rank = _CHANGES[kind](parts)
    if min(change) < 1:
        raise ValueError("has no values")
    if rank is not None and not 1 <= rank <= MAX_RANK:
        raise ValueError(f"is of rank {rank}, not of 1 to {MAX_RANK}")
    if magnitude is not None and (magnitude[:1], math.prod(magnitude)) != (change[:1], change[0]):
        raise ValueError(
            f"has a magnitude of shape {magnitude}, not one for each of its {change[0]} rows"
        )
    return change, rank


def _lora(shapes: Shapes) -> Change:
    """up ``[R, r, 1...]`` @ down ``[r, I, K...]``; or up ``[R, r, 1...]``, mid ``[r, r, K...]`` and
    down ``[r, I, 1...]``."""
    _check_parts(shapes, [{"up", "down"}, {"up", "down", "mid"}])
    up, down = shapes["up"], shapes["down"]
    rank = down[0]
    kernel = down[2:]
    fits = up[1] == rank and math.prod(up[2:]) == 1
    if "mid" in shapes:
        kernel = shapes["mid"][2:]
        fits = fits and shapes["mid"][:2] == (rank, rank) and math.prod(down[2:]) == 1
    _check_fit(fits, shapes)
    return (up[0], down[1] * math.prod(kernel)), rank


def _loha(shapes: Shapes) -> Change:
    """(w1_a ``[R, r]`` @ w1_b ``[r, C]``) * (w2_a @ w2_b); or each of w_a ``[r, R]``, w_b
    ``[r, I]`` and t ``[r, r, K...]``."""
    names = {"w1_a", "w1_b", "w2_a", "w2_b"}
    _check_parts(shapes, [names, names | {"t1", "t2"}])
    one, other = _low_rank("w1", "t1", shapes), _low_rank("w2", "t2", shapes)
    _check_fit(one == other, shapes)
    return one


def _lokr(shapes: Shapes) -> Change:
    """The Kronecker product of w1 and w2, of which each is whole or of low rank."""
    firsts: list[set[str]] = [{"w1"}, {"w1_a", "w1_b"}]
    seconds: list[set[str]] = [{"w2"}, {"w2_a", "w2_b"}, {"w2_a", "w2_b", "t2"}]
    _check_parts(shapes, [first | second for first in firsts for second in seconds])
    (rows, columns), rank = _low_rank("w1", "", shapes)
    (more_rows, more_columns), rank_2 = _low_rank("w2", "t2", shapes)
    _check_fit(rank is None or rank_2 is None or rank == rank_2, shapes)
    return (rows * more_rows, columns * more_columns), rank if rank_2 is None else rank_2


def _diff(shapes: Shapes) -> Change:
    """Values of any shape, the first dimension of which are the rows."""
    _check_fit(set(shapes) == {"diff"}, shapes)
    shape = shapes["diff"] or (1,)
    return (shape[0], math.prod(shape[1:])), None


_CHANGES: Mapping[Kind, Callable[[Shapes], Change]] = {
    "lora": _lora,
    "loha": _loha,
    "lokr": _lokr,
    "diff": _diff,
}


def _low_rank(name: str, core: str, shapes: Shapes) -> Change:
    """Rows, columns and rank of a factor that is whole, a product, or that of Tucker."""
    if name in shapes:
        whole = shapes[name]
        return (whole[0], math.prod(whole[1:])), None
    one, other = shapes[f"{name}_a"], shapes[f"{name}_b"]
    rank = other[0]
    if core not in shapes:
        _check_fit(len(one) == 2 and one[1] == rank, shapes)
        return (one[0], math.prod(other[1:])), rank
    kernel = shapes[core]
    _check_fit(len(one) == len(other) == 2 and one[0] == rank, shapes)
    _check_fit(kernel[:2] == (rank, rank), shapes)
    return (one[1], other[1] * math.prod(kernel[2:])), rank


def _check_parts(shapes: Shapes, allowed: Sequence[set[str]]) -> None:
    """Check that the parts are those of one of several ways to store a change, and matrices."""
    if set(shapes) not in allowed:
        closest = min(allowed, key=lambda names: len(names ^ set(shapes)))
        wrong = [f"lacks {name}" for name in sorted(closest - set(shapes))]
        wrong += [f"has {name}" for name in sorted(set(shapes) - closest)]
        raise ValueError(f"{wrong[0]} beside {', '.join(sorted(closest & set(shapes)))}")
    _check_fit(all(len(shape) >= 2 for shape in shapes.values()), shapes)


def _check_fit(fits: bool, shapes: Shapes) -> None:
    if not fits:
        parts = ", ".join(f"{name} of shape {shape}" for name, shape in shapes.items())
        raise ValueError(f"has {parts}, which do not fit together")
