"""Work of a few threads, with its results in order."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from functools import partial

import pytest
import torch

from longtake.pipelines.loading.threads import in_order


def test_results_are_in_order_of_the_tasks() -> None:
    def work(number: int) -> int:
        time.sleep(0.003 * (number % 3 == 0))
        return number

    assert list(in_order(partial(work, number) for number in range(40))) == [*range(40)]
    assert list(in_order(iter(()))) == []


def test_tasks_run_at_the_same_time() -> None:
    meeting = threading.Barrier(2, timeout=30)
    assert sorted(in_order([meeting.wait, meeting.wait])) == [0, 1]


def test_few_tasks_are_taken_ahead() -> None:
    taken = []

    def tasks() -> Iterator[Callable[[], int]]:
        for number in range(100):
            taken.append(number)
            yield lambda: 0

    results = in_order(tasks())
    next(results)
    assert len(taken) < 12
    results.close()  # type: ignore[attr-defined]


def test_the_first_failure_is_raised_and_ends_the_rest() -> None:
    begun = []

    def work(number: int) -> int:
        begun.append(number)
        if number == 3:
            raise ValueError("three")
        return number

    results = in_order(partial(work, number) for number in range(1000))
    assert [next(results) for _ in range(3)] == [0, 1, 2]
    with pytest.raises(ValueError, match="three"):
        next(results)
    assert len(begun) < 20


@pytest.mark.parametrize("inference", [False, True])
def test_tasks_have_the_inference_mode_of_their_caller(inference: bool) -> None:
    with torch.inference_mode(inference):
        values = torch.zeros(2)
        (done,) = in_order([lambda: values.add_(1)])
    assert done.is_inference() == inference
