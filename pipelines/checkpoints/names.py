"""Tables from a module's tensor names to those of a file, small however many layers there are."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from longtake.pipelines.checkpoints.layout import Piece
from longtake.pipelines.loading.tensor_shapes import NamedShapes, Shape

Pieces = tuple[Piece, ...]
NamedShape = tuple[str, Shape]


def renamed(tensors: Iterable[NamedShape], table: Mapping[str, Sequence[str]]) -> dict[str, Pieces]:
    """Pieces of a module's tensors, by their names in the module.

    Args:
        tensors: The tensors of the module, or of one of its layers.
        table: By name in the file: the names in the module of what it consists of, one below the
            other along the rows. Both are names of submodules, or both of tensors. What the table
            does not name has one name in both.
    """
    shapes = dict(tensors)
    homes = {own: (file, at) for file, owns in table.items() for at, own in enumerate(owns)}
    pieces: dict[str, Pieces] = {}
    for name, shape in shapes.items():
        own, leaf = (name, "") if name in homes else _submodule(name)
        file, at = homes.get(own, (own, 0))
        owns = table.get(file, (own,))
        begin = sum(shapes[before + leaf][0] for before in owns[:at])
        rows = None if len(owns) == 1 else (begin, begin + shape[0])
        pieces[name] = (Piece(file + leaf, rows),)
    return pieces


@dataclass(frozen=True)
class Layers:
    """Layers whose tensors have the same names and shapes.

    Attributes:
        module: Name of their list in the module, such as "transformer_blocks".
        file: Its name in the file, such as "double_blocks".
        count: Number of layers.
        names: Pieces of one layer's tensors; names are those within the layer.
    """

    module: str
    file: str
    count: int
    names: Mapping[str, Pieces]

    def pieces(self, name: str) -> Pieces | None:
        """Pieces of a tensor of these layers; None for any other name."""
        index, dot, own = name.removeprefix(f"{self.module}.").partition(".")
        if not (name.startswith(f"{self.module}.") and dot and own in self.names):
            return None
        # Of a length that int() reads, and the one spelling of its number.
        short = index.isdecimal() and len(index) <= len(str(self.count))
        known = short and str(int(index)) == index and int(index) < self.count
        return self._of_layer(index, own) if known else None

    def items(self) -> Iterator[tuple[str, Pieces]]:
        """Name and pieces of each tensor."""
        for index in range(self.count):
            for own in self.names:
                yield f"{self.module}.{index}.{own}", self._of_layer(str(index), own)

    def _of_layer(self, index: str, own: str) -> Pieces:
        start = f"{self.file}.{index}."
        return tuple(Piece(start + each.name, each.rows) for each in self.names[own])


class LayeredNames(Mapping[str, Pieces]):
    """The names of a module: of each list of layers, those of one layer are held.

    Args:
        outside: Pieces of the tensors outside of layers.
        layers: The lists of layers.
    """

    def __init__(self, outside: Mapping[str, Pieces], *layers: Layers) -> None:
        self._outside, self._layers = outside, layers

    def __getitem__(self, name: str) -> Pieces:
        if name in self._outside:
            return self._outside[name]
        for each in self._layers:
            if (pieces := each.pieces(name)) is not None:
                return pieces
        raise KeyError(name)

    def __iter__(self) -> Iterator[str]:
        yield from self._outside
        for each in self._layers:
            yield from (name for name, _ in each.items())

    def __len__(self) -> int:
        return len(self._outside) + sum(each.count * len(each.names) for each in self._layers)


def split_layers(
    tensors: NamedShapes, lists: Iterable[str]
) -> tuple[list[NamedShape], dict[str, list[NamedShape]]]:
    """Split a module's tensors into those outside of layers and those of one layer of each list.

    Args:
        tensors: Tensors of the module, with one layer in each list.
        lists: Names of the lists of layers in the module.

    Returns:
        The former, and by list the latter, whose names are those within the layer.
    """
    outside: list[NamedShape] = []
    layers: dict[str, list[NamedShape]] = {each: [] for each in lists}
    for name, shape in tensors:
        for each, inside in layers.items():
            if name.startswith(f"{each}.0."):
                inside.append((name.removeprefix(f"{each}.0."), shape))
                break
        else:
            outside.append((name, shape))
    return outside, layers


def _submodule(name: str) -> tuple[str, str]:
    """A tensor's submodule, and the rest of its name with the dot."""
    own, dot, leaf = name.rpartition(".")
    return (own, dot + leaf) if dot else (name, "")
