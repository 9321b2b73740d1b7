"""Peak memory of a computation, and free memory."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from longtake.errors import RequestError
from longtake.pipelines.codec import decode, memory
from longtake.pipelines.codec.memory import free_bytes, peak_bytes
from tests.decoding import SIZE, STRIDE, make_coder, tiling
from tests.rendering import ALONE

CPU = torch.device("cpu")


def test_peak_counts_live_tensors_only() -> None:
    layer = nn.Linear(100, 1000, bias=False)

    def function(x: torch.Tensor) -> torch.Tensor:
        wide = layer(x)  # ten times x
        narrow = wide[:, :100] + 1
        del wide
        return torch.cat([narrow, narrow])

    assert peak_bytes(function, (50, 100), CPU) == 50 * 100 * 4 * (1 + 10 + 1)
    assert peak_bytes(lambda x: x.view(-1), (50, 100), CPU) == 50 * 100 * 4


def test_measuring_the_peak_computes_nothing() -> None:
    whole = (1, 4, 33, 512, 512)
    assert peak_bytes(make_coder(tiling(None, None, "whole"), "decode").run, whole, CPU) > 2**40


@pytest.mark.parametrize(
    ("limit", "expected"), [("1000000", 700_000), ("max", None), ("100", 0)], ids=str
)
def test_free_memory_of_a_container(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limit: str, expected: int | None
) -> None:
    whole_host = free_bytes(CPU)
    assert whole_host > 2**28
    (tmp_path / "memory.max").write_text(limit + "\n")
    (tmp_path / "memory.current").write_text("400000\n")
    (tmp_path / "memory.stat").write_text("anon 250000\ninactive_file 100000\n")
    monkeypatch.setattr(memory, "_CGROUP", tmp_path)
    found = free_bytes(CPU)
    assert found == expected if expected is not None else found > 2**28


def test_decode_whole_is_refused_if_it_does_not_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    shape = (2, 4, 3, 9, 9)
    whole, tiled = tiling(None, None, "whole"), tiling(SIZE, STRIDE)
    needed = 2 * peak_bytes(make_coder(whole, "decode").run, (1, *shape[1:]), CPU)
    for free, refused in ((needed, False), (needed - 1, True)):
        monkeypatch.setattr(decode, "free_bytes", lambda device, free=free: free)
        decode.check_decode_memory(make_coder(tiled, "decode"), shape, tiled, ALONE)
        if refused:
            with pytest.raises(RequestError, match="decode=whole needs about .* try decode=tiled"):
                decode.check_decode_memory(make_coder(whole, "decode"), shape, whole, ALONE)
        else:
            decode.check_decode_memory(make_coder(whole, "decode"), shape, whole, ALONE)
