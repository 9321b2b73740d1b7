"""Many clients of one server at once. ``make soak``: ``python -m tests.crowd --requests 4``."""

from __future__ import annotations

import argparse
import tempfile
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx

from tests.serving import Server, serving
from tests.until import until

CLIENTS = 50
MAX_GROWTH_BYTES = 64 * 2**20


def crowd(server: Server, requests_per_client: int) -> Counter[str]:
    """Send requests from many clients; returns how many ended in each way.

    A request is refused by a full queue ("429"), cancelled by its client, or followed until its
    video has ended. Meanwhile the server has to answer others quickly; afterwards its queue has to
    be empty and its memory no larger.
    """
    server.wait(server.create(num_inference_steps=1)["id"])
    family = server.family()
    before = sum(each.memory_info().rss for each in family)
    stop = threading.Event()
    with ThreadPoolExecutor(1 + CLIENTS) as pool:
        slowest_s = pool.submit(_poll_health, server.url, stop)
        try:
            outcomes = pool.map(
                lambda number: _client(server.url, number, requests_per_client), range(CLIENTS)
            )
            total = sum(outcomes, Counter[str]())
        finally:
            stop.set()
    assert slowest_s.result() < 5
    assert total.total() == CLIENTS * requests_per_client
    until(lambda: "longtake_queue_depth 0.0" in server.client.get("/metrics").text)
    after = sum(each.memory_info().rss for each in family)
    assert after - before < MAX_GROWTH_BYTES, (before, after)
    return total


def _poll_health(url: str, stop: threading.Event) -> float:
    """Ask for the server's health until stopped; returns the longest time of an answer."""
    times_s = [0.0]
    with httpx.Client(base_url=url, timeout=10) as client:
        while not stop.wait(0.1):
            start = time.monotonic()
            assert client.get("/health").status_code == 200
            times_s.append(time.monotonic() - start)
    return max(times_s)


def _client(url: str, number: int, requests: int) -> Counter[str]:
    """Requests of one client, each sent when the previous one has ended."""
    outcomes: Counter[str] = Counter()
    body = {"prompt": f"{number}", "num_inference_steps": 1, "num_frames": 1}
    with httpx.Client(base_url=url, timeout=60) as client:
        for turn in range(requests):
            response = client.post("/v1/videos", json=body)
            if response.status_code == 429:
                assert int(response.headers["retry-after"]) >= 1
                assert response.json()["error"]["code"] == "queue_full"
                outcomes["429"] += 1
                continue
            assert response.status_code == 200, response.text
            name = response.json()["id"]
            if (number + turn) % 3:
                assert client.delete(f"/v1/videos/{name}").json()["deleted"]
                outcomes["cancelled"] += 1
                continue
            while (video := client.get(f"/v1/videos/{name}").json())["status"] in (
                "queued",
                "in_progress",
            ):
                time.sleep(0.2)
            outcomes[video["status"]] += 1
    return outcomes


def main() -> None:
    """Start a server, send it a crowd, and report."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--requests", type=int, default=4, help="requests of each client")
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    with (
        tempfile.TemporaryDirectory(prefix="longtake-crowd-") as folder,
        serving(Path(folder) / "serve", "--devices", "2", "--longest-s", "2000") as server,
    ):
        for _ in range(options.rounds):
            outcomes = crowd(server, options.requests)
            assert outcomes.keys() == {"429", "completed", "cancelled"}, outcomes
            print(dict(outcomes), flush=True)


if __name__ == "__main__":
    main()
