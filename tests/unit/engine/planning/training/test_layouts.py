"""Hybrids and their device groups."""

from __future__ import annotations

from longtake.engine.planning.training.layouts import TrainingLayout, layouts


def test_tensor_is_innermost_then_ulysses_ring_data_and_pipeline() -> None:
    layout = TrainingLayout(pipeline=2, data=2, ring=2, ulysses=2, tensor=2)
    assert layout.groups("tensor")[0].tolist() == [0, 1]
    assert layout.groups("ulysses")[0].tolist() == [0, 2]
    assert layout.groups("ring")[0].tolist() == [0, 4]
    assert layout.groups("data")[0].tolist() == [0, 8]
    assert layout.groups("pipeline")[0].tolist() == [0, 16]
    copies = layout.groups("data", "ring", "ulysses")
    assert copies[0].tolist() == list(range(0, 16, 2))
    assert sorted(copies.ravel().tolist()) == list(range(32))


def test_every_hybrid_is_listed_once() -> None:
    found = list(layouts(12))
    assert len(set(found)) == len(found)
    assert all(each.world_size == 12 for each in found)
    degrees = {each.degrees for each in found}
    assert len(degrees) == 75  # ordered products: C(2+4, 4) of 2 x 2, times 5 of 3
    for each in degrees:
        alike = [layout for layout in found if layout.degrees == each]
        copies = each[1] * each[2] * each[3] > 1
        assert len(alike) == (4 if copies else 1) * (2 if each[4] > 1 else 1)


def test_names() -> None:
    assert TrainingLayout().name == "one device"
    assert TrainingLayout(ring=2, tensor=8, zero=1).name == "ring2 tp8-sp zero1"
    plain = TrainingLayout(pipeline=4, data=2, ulysses=2, tensor=2, tensor_sequence=False)
    assert plain.name == "pp4 dp2 ulysses2 tp2 zero0"
    assert TrainingLayout(tensor=8).name == "tp8-sp"
