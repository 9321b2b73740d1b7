"""Tables of names: fused tensors by rows, and lists of layers of which one is held."""

from __future__ import annotations

import pytest

from longtake.errors import ModelError
from longtake.pipelines.checkpoints.layout import Piece
from longtake.pipelines.checkpoints.module_shapes import MAX_LAYERS, ModuleShapes
from longtake.pipelines.checkpoints.names import LayeredNames, Layers, renamed, split_layers
from longtake.pipelines.loading.files.tensor_files import Tensor

TENSORS = [
    ("q.weight", (4, 9)),
    ("q.bias", (4,)),
    ("k.weight", (2, 9)),
    ("k.bias", (2,)),
    ("norm.weight", (4,)),
    ("table", (1, 9)),
]


def test_renamed() -> None:
    names = renamed(TENSORS, {"qk": ("q", "k"), "norm.scale": ("norm.weight",)})
    assert names == {
        "q.weight": (Piece("qk.weight", (0, 4)),),
        "q.bias": (Piece("qk.bias", (0, 4)),),
        "k.weight": (Piece("qk.weight", (4, 6)),),
        "k.bias": (Piece("qk.bias", (4, 6)),),
        "norm.weight": (Piece("norm.scale"),),
        "table": (Piece("table"),),
    }
    assert renamed([("a.0", (1,)), ("a.1", (2,))], {"a": ("a.0", "a.1")}) == {
        "a.0": (Piece("a", (0, 1)),),
        "a.1": (Piece("a", (1, 3)),),
    }


def test_split_layers() -> None:
    tensors: list[tuple[str, tuple[int, ...]]] = [
        ("a.0.b", (1,)),
        ("c", (2,)),
        ("a.0.c.0.d", (3,)),
        ("a.norm", (4,)),
    ]
    outside, layers = split_layers(iter(tensors), ["a", "e"])
    assert outside == [("c", (2,)), ("a.norm", (4,))]
    assert layers == {"a": [("b", (1,)), ("c.0.d", (3,))], "e": []}


def test_layered_names() -> None:
    layer = {"b.weight": (Piece("d.weight", (1, 2)), Piece("d.weight", (0, 1)))}
    names = LayeredNames({"x": (Piece("y"),)}, Layers("a", "c", 12, layer), Layers("e", "e", 0, {}))
    assert len(names) == 13 == len(list(names))
    assert dict(names.items()) == {name: names[name] for name in names}
    assert names["a.11.b.weight"] == (
        Piece("c.11.d.weight", (1, 2)),
        Piece("c.11.d.weight", (0, 1)),
    )
    strangers = ("a.12.b.weight", "a.01.b.weight", "a.\u0661.b.weight", "a.-1.b.weight", "a..b")
    long = f"a.{'9' * 5000}.b.weight"  # longer than int() reads
    for name in (*strangers, long, "a.1.b", "a.1", "a", "c.0.d.weight", "1.b.weight", "y", ""):
        assert name not in names


def test_module_shapes() -> None:
    tensors = {
        "f.a": Tensor("F32", (2, 3), (0, 24)),
        "f.empty": Tensor("F32", (2, 0), (24, 24)),
        **{f"f.layers.{index}.w": Tensor("F32", (), (24, 28)) for index in (0, 1, 3)},
    }
    found = ModuleShapes(tensors, lambda name: f"f.{name}")
    assert "a" in found and "b" not in found
    assert found.shape("a", 2) == (2, 3)
    assert found.num_layers("layers.{}.w") == 2
    for name, dims, reason in (
        ("b", 2, "f.b is missing"),
        ("a", 1, r"f.a has shape \(2, 3\): it must have 1"),
        ("empty", 2, "none of them 0"),
    ):
        with pytest.raises(ModelError, match=reason):
            found.shape(name, dims)
    endless = ModuleShapes({"w": Tensor("F32", (), (0, 4))}, lambda name: "w")
    assert endless.num_layers("layers.{}.w") == MAX_LAYERS
