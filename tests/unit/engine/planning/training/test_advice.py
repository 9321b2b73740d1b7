"""The USP paper's advice on hybrids (arXiv 2405.07719, section 4), against the planner's numbers.

A test's docstring says whether they agree. docs/explanation/training.md has the figures.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

from longtake.configs.decoders import load_decoder
from longtake.configs.hardware import load_hardware
from longtake.engine.planning.training.block_costs import attention_sent
from longtake.engine.planning.training.layouts import TrainingLayout
from longtake.engine.planning.training.planner import (
    least_recompute,
    make_training_plan,
    missing_bytes,
    predict,
)
from longtake.engine.planning.training.training_input import Recompute, TrainingInput

Layout = TrainingLayout
PAGE = Path(__file__).parents[5] / "docs/explanation/training.md"


@cache
def work(
    model: str = "llama3-8b", gpu: str = "a800", sequence: int = 131072, batch: int = 1
) -> TrainingInput:
    return TrainingInput(
        config=load_decoder(model), hardware=load_hardware(gpu), sequence=sequence, batch=batch
    )


def with_heads(training: TrainingInput, heads: int, kv_heads: int) -> TrainingInput:
    """The same decoder with other heads of the same width in all."""
    fields = training.config.model_dump() | {
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "head_dim": training.config.hidden_size // heads,
    }
    return TrainingInput(
        config=type(training.config)(**fields),
        hardware=training.hardware,
        sequence=training.sequence,
        batch=training.batch,
    )


def seconds(
    training: TrainingInput, layout: TrainingLayout, recompute: Recompute = "selective"
) -> float:
    return predict(training, layout, recompute).time.seconds


def fastest_split(training: TrainingInput, ranks: int, **fixed: Any) -> tuple[int, int]:
    """Ring and Ulysses degree of the fastest split of a sequence."""
    splits = [(ranks // u, u) for u in (1, 2, 4, 8, 16) if ranks % u == 0]
    return min(
        splits,
        key=lambda each: seconds(training, Layout(ring=each[0], ulysses=each[1], zero=3, **fixed)),
    )


def test_usp_is_faster_than_ulysses_or_ring_alone_on_two_nodes() -> None:
    """Tip 1, agreed: the ring goes across the network, the all-to-alls stay in a node."""
    for gpu in ("a800", "h100"):
        for sequence in (32768, 131072):
            training = work(gpu=gpu, sequence=sequence)
            assert fastest_split(training, 16) == (2, 8)
            mixed = seconds(training, Layout(ring=2, ulysses=8, zero=3))
            for alone in (Layout(ulysses=16, zero=3), Layout(ring=16, zero=3)):
                assert seconds(training, alone) > 1.02 * mixed


def test_usp_is_faster_than_either_alone_on_pcie() -> None:
    """Tip 1, agreed: a ring has one flow between sockets where an all-to-all has 16."""
    training = work(gpu="l20", sequence=32768)
    ring, ulysses = fastest_split(training, 8)
    assert ring > 1 and ulysses > 1


def test_ulysses_alone_is_fastest_where_nvlink_joins_all() -> None:
    """Tip 1, contradicted on one node of NVLink: Ulysses alone wins, by less than 3 %."""
    training = work()
    assert fastest_split(training, 8) == (1, 8)
    alone, mixed = (seconds(training, Layout(ring=r, ulysses=8 // r, zero=3)) for r in (1, 4))
    assert alone < mixed < 1.03 * alone


def test_data_parallelism_comes_first_at_equal_recomputation() -> None:
    """Tip 2, agreed: DP sends no activations."""
    training = work("llama2-7b", sequence=32768, batch=8)
    data = seconds(training, Layout(data=8, zero=3))
    for split in (
        Layout(ulysses=8, zero=3),
        Layout(ring=8, zero=3),
        Layout(data=4, ulysses=2, zero=3),
    ):
        assert seconds(training, split) > 1.02 * data


def test_sequence_parallelism_comes_first_where_it_saves_recomputation() -> None:
    """Tip 2, contradicted where DP must recompute what SP can keep: a rank of DP holds a whole
    sequence, and accumulation with SP an eighth of one at a time."""
    training = work("llama2-7b", sequence=32768, batch=8)
    data, split = Layout(data=8, zero=3), Layout(ulysses=8, zero=3)
    assert least_recompute(training, data) == "selective"
    assert least_recompute(training, split) == "none"
    assert seconds(training, split, "none") < 0.97 * seconds(training, data)
    best = make_training_plan(training, 8).best
    assert best.recompute == "none" and best.layout.dims.sequence_degree > 1


def test_sequence_parallelism_needs_zero() -> None:
    """Tip 3, agreed: SP divides activations alone. Without ZeRO no sequence fits, however short;
    ZeRO-3 costs less than a percent beside ZeRO-2."""
    for sequence in (16, 65536):
        split = Layout(ring=2, ulysses=8)
        assert missing_bytes(work(sequence=sequence), split, "full") > 0
    training = work(sequence=65536)
    two, three = (seconds(training, Layout(ring=2, ulysses=8, zero=zero)) for zero in (2, 3))
    assert three < 1.01 * two


def test_sequence_parallelism_is_faster_than_tp_sp() -> None:
    """Tip 4, agreed, and more so with grouped heads: TP-sp moves all tokens of its group ten times
    a block, at every degree; Ulysses moves an N-th of a rank's own."""
    for model in ("llama2-7b", "llama3-8b"):
        for ring in (1, 2, 4):
            training = work(model)
            split, tensor = (
                Layout(ring=ring, ulysses=8, zero=3),
                Layout(ring=ring, tensor=8, zero=3),
            )
            assert seconds(training, tensor) > 1.1 * seconds(training, split)
    exposed = [
        predict(work(model), Layout(ulysses=8, zero=3), "selective").time.exposed_s
        for model in ("llama2-7b", "llama3-8b")
    ]
    assert exposed[1] < 0.7 * exposed[0]  # 8 KV heads, not 32


def test_tp_sp_holds_less_until_zero_3() -> None:
    """Tip 4, agreed: ZeRO-1 keeps weights and gradients whole. With ZeRO-3 SP holds at most 15 %
    more: the weights that are gathered, and the gradients not yet reduced."""
    training = work()
    tensor = predict(training, Layout(tensor=8), "selective").memory.total
    one, three = (
        predict(training, Layout(ulysses=8, zero=zero), "selective").memory.total for zero in (1, 3)
    )
    assert one > 1.5 * tensor
    assert tensor < three < 1.15 * tensor


def test_the_ring_grows_as_heads_become_few() -> None:
    """Tip 5, agreed: with 2 query heads six of eight Ulysses ranks would compute no attention."""
    few = with_heads(work(), 2, 2)
    ring, ulysses = fastest_split(few, 8)
    assert ring >= 4
    mixed = seconds(few, Layout(ring=ring, ulysses=ulysses, zero=3))
    assert seconds(few, Layout(ulysses=8, zero=3)) > 2 * mixed


def test_few_kv_heads_make_the_ring_cheap_and_ulysses_dear() -> None:
    """Tip 5, agreed in bytes: a KV head that several Ulysses ranks need is sent to each of them.
    Contradicted in time on NVLink, where the all-to-alls are a percent of a step."""
    many, few = with_heads(work(), 32, 32), with_heads(work(), 32, 1)
    ulysses, ring = Layout(ulysses=8), Layout(ring=8)
    assert attention_sent(many, ring) > 5 * attention_sent(many, ulysses)
    assert attention_sent(few, ring) < attention_sent(few, ulysses)
    assert fastest_split(few, 8) == (1, 8)


def test_sequences_grow_with_the_ranks_beyond_the_kv_heads() -> None:
    """Tip 5, agreed: TP cannot divide 8 KV heads over 32 GPUs, SP can divide the tokens."""
    fits = {
        ranks: max(
            length
            for length in range(2**16, 2**22, 2**16)
            if missing_bytes(
                work(sequence=length), Layout(ring=ranks // 8, ulysses=8, zero=3), "full"
            )
            <= 0
        )
        for ranks in (8, 16, 32)
    }
    assert fits[32] > 1.9 * fits[16] > 3.5 * fits[8] > 0
    assert [length // 1024 for length in fits.values()] == [192, 576, 1216]  # as on the page
    plan = make_training_plan(work(sequence=fits[32]), 32)
    assert plan.layouts
    assert all(each.layout.dims.sequence_degree >= 4 for each in plan.layouts)
    assert all(each.layout.tensor <= 8 for each in plan.layouts)


def test_the_figures_of_the_page() -> None:
    """Seconds of a step, GB of a rank, and GB that a block sends, as the page has them."""
    llama2 = work("llama2-7b", sequence=32768, batch=8)
    times: list[tuple[TrainingInput, dict[str, Any], Recompute]] = [
        *((work(), {"ring": r, "ulysses": 16 // r}, "selective") for r in (1, 2, 16)),
        *((work(sequence=32768), {"ring": r, "ulysses": 16 // r}, "selective") for r in (1, 2, 16)),
        *((work(), {"ring": r, "ulysses": 8 // r}, "selective") for r in (1, 4, 8)),
        (work(), {"tensor": 8}, "selective"),
        (llama2, {"data": 8}, "selective"),
        (llama2, {"ulysses": 8}, "selective"),
        (llama2, {"ulysses": 8}, "none"),
        (with_heads(work(), 2, 2), {"ring": 4, "ulysses": 2}, "selective"),
        (with_heads(work(), 2, 2), {"ulysses": 8}, "selective"),
    ]
    figures = [f"{seconds(t, Layout(**d, zero=3), r):#.3g} s" for t, d, r in times]
    states: list[tuple[TrainingInput, TrainingLayout, Recompute]] = [
        (llama2, Layout(data=8, zero=3), "none"),
        (work(sequence=16), Layout(ring=2, ulysses=8), "full"),
        (work(), Layout(tensor=8), "selective"),
        (work(), Layout(ulysses=8, zero=1), "selective"),
        (work(), Layout(ulysses=8, zero=3), "selective"),
    ]
    figures += [f"{predict(t, d, r).memory.total / 1e9:.0f} GB" for t, d, r in states]
    for kv_heads in (1, 32):
        heads = with_heads(work(), 32, kv_heads)
        figures += [
            f"{attention_sent(heads, layout) / 1e9:.2f} GB"
            for layout in (Layout(ring=8), Layout(ulysses=8))
        ]
    page = PAGE.read_text()
    assert [figure for figure in figures if figure not in page] == []
