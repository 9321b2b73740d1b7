"""Jobs of one set of LoRAs run together, and no job waits for long because of it."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from longtake.serve.runner.lora_order import LONGEST_S, MOST_AHEAD, LoraOrder
from tests.rendering import request


def jobs(names: str) -> list[Any]:
    """One job for each letter, whose LoRA it names; "-" is none."""
    loras: dict[str, dict[str, Any]] = {
        name: {"lora": (f"{name}.safetensors",), "lora_sha256": (name * 64,)} for name in "abc"
    }
    requests = {name: request(**loras.get(name, {})) for name in names}
    return [
        SimpleNamespace(id=f"{name}{number}", request=requests[name])
        for number, name in enumerate(names)
    ]


def rendered(names: str, step_s: float = 1.0) -> str:
    """The LoRAs of the jobs in the order in which they are rendered."""
    order, waiting, now, done = LoraOrder(), jobs(names), 0.0, ""
    while waiting:
        job = order.choose(waiting, now)
        waiting.remove(job)
        done += job.id[0]
        now += step_s
    return done


def test_the_first_job_goes_first_then_those_of_its_loras() -> None:
    assert rendered("ab-ab-ab") == "aaabbb--"
    assert rendered("-a-a") == "--aa"
    assert rendered("abc") == "abc"


def test_jobs_without_loras_keep_their_order() -> None:
    waiting = jobs("-----")
    order = LoraOrder()
    ids = []
    while waiting:
        ids.append(waiting.pop(waiting.index(order.choose(waiting, 0.0))).id)
    assert ids == ["-0", "-1", "-2", "-3", "-4"]


def test_no_more_than_some_go_ahead() -> None:
    done = rendered("ab" + "a" * (2 * MOST_AHEAD))
    assert done.index("b") == 1 + MOST_AHEAD
    assert done.startswith("a" * (1 + MOST_AHEAD) + "b" + "a")


def test_none_goes_ahead_after_some_time() -> None:
    assert rendered("ab" + "a" * 6, step_s=LONGEST_S / 3) == "aaaabaaa"


def test_other_digest_or_scale_is_another_choice() -> None:
    one, other, scaled = jobs("aaa")
    other.request = request(lora=("a.safetensors",), lora_sha256=("b" * 64,))
    scaled.request = request(lora=("a.safetensors:0.5",), lora_sha256=("a" * 64,))
    order = LoraOrder()
    same = jobs("a")[0]
    assert order.choose([one], 0.0) is one
    assert order.choose([other, scaled, same], 0.0) is same
    assert order.choose([other, scaled], 0.0) is other
