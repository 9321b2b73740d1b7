"""Blocks get their weights in any order, from two slots; errors come in words."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from torch import nn

from longtake.errors import EngineError, ModelError
from longtake.pipelines.runtime.block_runner import BlockRunner
from longtake.pipelines.streaming import streamer as streamer_module
from longtake.pipelines.streaming.layout import BlockLayout
from longtake.pipelines.streaming.slots import GpuSlot
from longtake.pipelines.streaming.streamer import BlockStreamer, takes_memory
from tests.streams import Streams

CPU = torch.device("cpu")


class Block(nn.Module):
    """Adds its weights to its input; blocks differ in size and dtype."""

    mean: torch.Tensor

    def __init__(self, number: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(3 + number))
        self.shift = nn.Parameter(torch.empty(5, dtype=torch.bfloat16))
        self.register_buffer("mean", torch.empty(()))

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        return tokens + self.weight.sum() + self.shift.float().sum() + self.mean


class Store:
    """Blocks of given values in host memory; reading one may fail."""

    def __init__(self, values: Sequence[float], streams: Streams | None = None) -> None:
        states = [Block(number).state_dict() for number in range(len(values))]
        self.layouts = [BlockLayout(state) for state in states]
        self.reads: list[int] = []
        self.fails_at: int | None = None
        self.is_pinned = False
        self._streams = streams
        self._bytes = []
        for value, layout in zip(values, self.layouts, strict=True):
            buffer = torch.zeros(layout.num_bytes, dtype=torch.uint8)
            for view in layout.views(buffer).values():
                view.fill_(value)
            self._bytes.append(buffer)

    def pinned(self, number: int) -> torch.Tensor | None:
        if not self.is_pinned:
            return None
        self.reads.append(number)
        return self._bytes[number]

    def read(self, number: int, target: torch.Tensor) -> None:
        self.reads.append(number)
        if number == self.fails_at:
            raise ModelError("the disk is gone")
        target.numpy()[: len(self._bytes[number])] = self._bytes[number].numpy()
        if self._streams is not None:
            self._streams.written_by_host(target[: len(self._bytes[number])])


def streamed(store: Store, device: torch.device = CPU) -> tuple[BlockStreamer, list[Block]]:
    """A streamer and its blocks."""
    with torch.device("meta"):
        blocks = [Block(number) for number in range(len(store.layouts))]
    streamer = BlockStreamer(device)
    streamer.add(blocks, store)
    return streamer, blocks


def result(values: Sequence[float], order: Sequence[int]) -> float:
    """What blocks of these values add to 0, in an order."""
    return sum((3 + number + 5 + 1) * values[number] for number in order)


VALUES = [1.0, -2.0, 4.0, 0.5]

ORDERS = {
    "in order": [[0, 1, 2, 3]] * 3,
    "skipped": [[0, 1, 2, 3], [0, 3], [2], [0, 1, 2, 3]],
    "reversed": [[3, 2, 1, 0], [0, 1, 2, 3]],
    "one block": [[2]] * 3,
    "repeated": [[1, 1, 2, 2, 1]],
    "none": [[], [0]],
}


@pytest.mark.parametrize("name", ORDERS)
def test_blocks_run_in_any_order(name: str) -> None:
    store = Store(VALUES)
    streamer, blocks = streamed(store)
    runner = BlockRunner()
    runner.weights = streamer
    for order in ORDERS[name]:
        (tokens,) = runner([blocks[number] for number in order], [torch.zeros(2)])
        assert tokens.tolist() == [result(VALUES, order)] * 2
    streamer.free()


@torch.inference_mode()
def test_blocks_run_in_inference_mode() -> None:
    streamer, blocks = streamed(Store(VALUES))
    runner = BlockRunner()
    runner.weights = streamer
    for _ in range(2):
        (tokens,) = runner(blocks, [torch.zeros(1)])
        assert tokens.item() == result(VALUES, range(4))
    streamer.free()


def test_the_first_block_of_the_next_pass_arrives_in_advance() -> None:
    store = Store(VALUES)
    streamer, blocks = streamed(store)
    runner = BlockRunner()
    runner.weights = streamer
    for _ in range(3):
        runner(blocks[:2], [torch.zeros(2)], then=blocks[2])
        runner(blocks[2:], [torch.zeros(2)])
    streamer.free()
    assert store.reads == [*range(4), *range(4), *range(4), 0]


def test_two_blocks_stay_on_the_device() -> None:
    store = Store(VALUES[:2])
    streamer, blocks = streamed(store)
    runner = BlockRunner()
    runner.weights = streamer
    for _ in range(3):
        runner(blocks, [torch.zeros(2)])
    assert store.reads == [0, 1]
    streamer.free()
    runner(blocks, [torch.zeros(2)])
    assert store.reads == [0, 1, 0, 1]
    streamer.free()


def test_weights_elsewhere_take_no_memory_and_are_not_a_number() -> None:
    streamer, (block, *_) = streamed(Store(VALUES))
    assert block.weight.shape == (3,) and block.shift.dtype == torch.bfloat16
    assert not block.weight.requires_grad
    assert not takes_memory(block.weight) and block(torch.zeros(1)).isnan().all()
    with streamer.weights_of(block):
        assert takes_memory(block.weight) and block.weight.tolist() == [1, 1, 1]
    assert block(torch.zeros(1)).isnan().all()
    streamer.free()


def test_an_error_in_a_block_takes_its_weights_away() -> None:
    streamer, blocks = streamed(Store(VALUES))
    with pytest.raises(RuntimeError, match="boom"), streamer.weights_of(blocks[0]):
        raise RuntimeError("boom")
    assert blocks[0].weight.isnan().all()
    with streamer.weights_of(blocks[1]):
        assert blocks[1].weight.tolist() == [-2] * 4
    streamer.free()


def test_a_block_that_cannot_be_read_is_read_again() -> None:
    store = Store(VALUES)
    streamer, blocks = streamed(store)
    runner = BlockRunner()
    runner.weights = streamer
    store.fails_at = 2
    with pytest.raises(EngineError, match="the disk is gone"):
        runner(blocks, [torch.zeros(1)])
    streamer.free()
    store.fails_at = None
    (tokens,) = runner(blocks, [torch.zeros(1)])
    assert tokens.item() == result(VALUES, range(4))
    streamer.free()


def test_several_experts_share_the_slots() -> None:
    stores = Store(VALUES[:2]), Store(VALUES[2:])
    streamer, high = streamed(stores[0])
    with torch.device("meta"):
        low = [Block(number) for number in range(2)]
    streamer.add(low, stores[1])
    assert streamer.slot_bytes == 2 * stores[0].layouts[0].num_bytes
    runner = BlockRunner()
    runner.weights = streamer
    for expert, values in ((high, VALUES[:2]), (low, VALUES[2:]), (high, VALUES[:2])):
        (tokens,) = runner(expert, [torch.zeros(1)])
        assert tokens.item() == result(values, range(2))
    streamer.free()


@pytest.mark.parametrize("is_pinned", [True, False], ids=["pinned", "read"])
@pytest.mark.parametrize("name", ORDERS)
def test_copies_to_a_gpu_are_ordered(
    monkeypatch: pytest.MonkeyPatch, name: str, is_pinned: bool
) -> None:
    """No copy overwrites what is still computed with, and nothing is used before it arrives."""
    streams, _ = gpu_streams(monkeypatch)
    store = Store(VALUES, streams)
    store.is_pinned = is_pinned
    streamer, blocks = streamed(store)
    runner = BlockRunner()
    runner.weights = streamer
    with streams:
        for order in ORDERS[name] * 2:
            (tokens,) = runner([blocks[number] for number in order], [torch.zeros(2)])
            assert tokens.tolist() == [result(VALUES, order)] * 2
        streamer.free()
    assert streams.races == []


@pytest.mark.parametrize("missing", ["_arrived.wait", "_computed.wait", "_arrived.synchronize"])
def test_each_wait_is_needed(monkeypatch: pytest.MonkeyPatch, missing: str) -> None:
    """Without one of them, the stand-in finds a race."""
    streams, slots = gpu_streams(monkeypatch)
    store = Store(VALUES, streams)
    streamer, blocks = streamed(store)
    runner = BlockRunner()
    runner.weights = streamer
    attribute, method = missing.split(".")
    slots.without = (attribute, method)
    with streams:
        for _ in range(3):
            runner(blocks, [torch.zeros(2)])
    assert streams.races != []


class Slots:
    """Makes GPU slots in host memory, whose events may lack a method."""

    def __init__(self, copies: torch.cuda.Stream) -> None:
        self._copies = copies
        self.without: tuple[str, str] | None = None

    def __call__(self, num_bytes: int, device: torch.device) -> GpuSlot:
        slot = GpuSlot(num_bytes, device, self._copies)
        if self.without is not None:
            attribute, method = self.without
            setattr(getattr(slot, attribute), method, lambda *streams: None)
        return slot


def gpu_streams(monkeypatch: pytest.MonkeyPatch) -> tuple[Streams, Slots]:
    """Streams that are recorded, and what makes the slots."""
    streams = Streams()
    streams.patch(monkeypatch)
    slots = Slots(torch.cuda.Stream())
    monkeypatch.setattr(streamer_module, "HostSlot", slots)
    monkeypatch.setattr(streamer_module, "ThreadPoolExecutor", streams.executor)
    monkeypatch.setattr(
        "longtake.pipelines.streaming.slots.pinned_bytes",
        lambda num_bytes: torch.empty(num_bytes, dtype=torch.uint8),
    )
    return streams, slots
