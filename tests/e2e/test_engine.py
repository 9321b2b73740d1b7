"""VideoEngine on one rank, and on two that stay alive between requests."""

from __future__ import annotations

import base64
import re
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest

from longtake import ParallelConfig, VideoEngine, VideoRequest
from longtake.engine import Progress, ResolvedRequest
from longtake.engine.launch.local_processes import LocalProcesses
from longtake.errors import EngineError, KernelError, LayoutError, ModelError, RequestError, Stopped
from tests import tiny


def ranks_of(engine: VideoEngine) -> list[psutil.Process]:
    """The processes that an engine started."""
    launcher = engine._ranks._launcher
    assert isinstance(launcher, LocalProcesses)
    assert launcher._processes is not None
    pids = launcher._processes._started.pids()
    return [psutil.Process(pid) for pid in pids.values()]


def request(**changes: Any) -> VideoRequest:
    settings: dict[str, Any] = dict(prompt="a cat walks on the grass", seed=5)
    return VideoRequest(**{**settings, **changes})


@pytest.fixture(scope="module")
def alone(model: str) -> Iterator[VideoEngine]:
    with VideoEngine.from_pretrained(model) as engine:
        yield engine


@pytest.fixture(scope="module")
def pair(model: str) -> Iterator[VideoEngine]:
    with VideoEngine.from_pretrained(model, devices=2, rank_loss_timeout_s=4) as engine:
        yield engine


def test_two_ranks_give_frames_and_latents_of_one(alone: VideoEngine, pair: VideoEngine) -> None:
    for changes in ({}, dict(num_videos=2, height=48, num_frames=5)):
        expected, video = (each.generate(request(**changes)) for each in (alone, pair))
        frames, height = changes.get("num_frames", 9), changes.get("height", 32)
        assert video.frames.shape == (frames, height, 48, 3)
        assert video.frames.dtype == np.float32
        assert len(video.batch) == changes.get("num_videos", 1)
        for ours, theirs in zip(video.batch, expected.batch, strict=True):
            np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-4)
        np.testing.assert_allclose(video.latents, expected.latents, rtol=0, atol=1e-4)


def test_request_as_fields_or_prompt(alone: VideoEngine) -> None:
    expected = alone.generate(request(num_frames=5)).latents
    prompt = request().prompt
    for video in (
        alone.generate(prompt=prompt, seed=5, num_frames=5),
        alone.generate(prompt, seed=5, size="48x32", num_frames=5),
    ):
        np.testing.assert_array_equal(video.latents, expected)
    for arguments, fields, words in (
        ((request(),), {"seed": 3}, "seed together with a request"),
        ((3,), {}, "request='3' is not a VideoRequest"),
        ((), {"prompt": "a", "heigth": 3}, "heigth is not an option: perhaps you meant height"),
        ((), {"prompt": "a", "num_frames": "many"}, "num_frames='many' must be a whole number"),
        ((), {"prompt": "a", "image": np.zeros((2, 2))}, "image=array"),
    ):
        with pytest.raises(RequestError, match=words) as caught:
            alone.generate(*arguments, **fields)
        assert "\n" not in str(caught.value)
    with pytest.raises(RequestError, match="model=3 must be text"):
        VideoEngine.from_pretrained(3)  # type: ignore[arg-type]


def test_video_has_a_short_and_a_notebook_representation(alone: VideoEngine) -> None:
    video = alone.generate(request(num_videos=2, num_frames=5))
    assert repr(video) == "<Video: 2 x 5 frames of 48x32 at 8 fps, seed 5>"
    before = video.metadata.as_json()
    shown = video._repr_mimebundle_()
    assert shown["text/plain"] == repr(video)
    players = re.findall(
        r'<video controls [^>]*src="data:video/mp4;base64,([^"]+)">', shown["text/html"]
    )
    assert len(players) == 2
    assert base64.b64decode(players[0])[4:8] == b"ftyp"
    assert video.metadata.as_json() == before

    latents = alone.generate(request(output_type="latents"))
    assert repr(latents) == "<Video: 9 frames as latents of 48x32 at 8 fps, seed 5>"
    assert latents._repr_mimebundle_() == {"text/plain": repr(latents)}


def test_second_request_loads_nothing(pair: VideoEngine) -> None:
    before = [process.pid for process in ranks_of(pair)]
    phases = []
    pair.generate(request(width=64, num_frames=1), lambda progress: phases.append(progress.phase))
    assert "loading" not in phases
    assert [process.pid for process in ranks_of(pair)] == before
    assert len(before) == 2


def test_progress_counts_every_step(pair: VideoEngine) -> None:
    seen: list[Progress] = []
    pair.generate(request(num_inference_steps=7), seen.append)
    steps = [(each.done, each.total) for each in seen if each.phase == "denoising"]
    assert steps == [(done, 7) for done in range(8)]
    phases = [each.phase for each in seen]
    assert sorted(set(phases), key=phases.index) == ["text", "denoising", "decoding"]


def test_metadata_renders_the_video_again(pair: VideoEngine, tmp_path: Path) -> None:
    video = pair.generate(request(seed=None))
    resolved = video.metadata.request
    assert isinstance(resolved, ResolvedRequest)
    drawn = resolved.seed
    again = pair.generate(VideoRequest(prompt=resolved.prompt, seed=drawn))
    np.testing.assert_array_equal(video.frames, again.frames)
    files = [video.save(tmp_path / "a.mp4"), again.save(tmp_path / "b.mp4")]
    assert files == [[tmp_path / "a.mp4"], [tmp_path / "b.mp4"]]
    assert (tmp_path / "a.mp4").read_bytes() == (tmp_path / "b.mp4").read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "a.mp4",
        "a.mp4.json",
        "b.mp4",
        "b.mp4.json",
    ]

    described = video.metadata.as_json()
    assert described["request"]["seed"] == drawn
    degrees = described["engine"]["parallel"]
    assert degrees["ring_degree"] * degrees["ulysses_degree"] == 2
    layout = f"1x{degrees['ring_degree']}x{degrees['ulysses_degree']}"
    assert described["layout"]["taken"] == layout
    assert described["layout"]["why"].startswith("the best of 2: ")
    assert described["engine"]["dtype"] == described["engine"]["vae_dtype"] == "float32"
    assert described["engine"]["attention_kernel"] == "cpu-flash"
    assert described["request"]["prompt_template"] == tiny.TEMPLATE
    assert described["request"]["max_sequence_length"] == tiny.MAX_TOKENS
    assert {"loading", "text", "denoising", "decoding"} <= described["seconds"].keys()
    assert described["bytes_sent"]["denoising"] > 0
    assert set(described["peak_memory_bytes"]) == {"0", "1"}
    assert min(described["peak_memory_bytes"].values()) > 10**8
    assert described["versions"]["diffusers"]


def test_latents_output_is_not_decoded(pair: VideoEngine) -> None:
    video = pair.generate(request(output_type="latents"))
    assert video.batch == []
    assert video.latents.shape == (1, 4, 3, 4, 6)
    assert "decoding" not in video.metadata.seconds
    with pytest.raises(RequestError, match="there are no frames here"):
        _ = video.frames
    with pytest.raises(RequestError, match="that were not decoded: use .safetensors"):
        video.save("out.mp4")


class Enough(Exception):
    """Raised by a caller to stop."""


@pytest.mark.parametrize("kind", [Enough, Stopped, RequestError, EngineError, KeyboardInterrupt])
def test_error_in_on_progress_stops_the_ranks_between_steps(
    pair: VideoEngine, kind: type[BaseException]
) -> None:
    """Whatever its type: Stopped, too, which ranks raise once they have stopped."""
    before = [process.pid for process in ranks_of(pair)]

    def stop_early(progress: Progress) -> None:
        if progress.phase == "denoising" and progress.done == 3:
            raise kind("enough")

    start = time.monotonic()
    with pytest.raises(kind, match="enough"):
        pair.generate(request(num_inference_steps=10_000), stop_early)
    assert time.monotonic() - start < 10
    seen: list[Progress] = []
    assert pair.generate(request(height=64), seen.append).frames.shape == (9, 64, 48, 3)
    assert {each.total for each in seen if each.phase == "denoising"} == {3}
    assert [process.pid for process in ranks_of(pair)] == before


def test_rendering_in_a_callback_is_refused(pair: VideoEngine) -> None:
    def render(progress: Progress) -> None:
        pair.generate(request())

    with pytest.raises(RequestError, match="called from its own callback"):
        pair.generate(request(), render)
    assert pair.generate(request()).frames.shape == (9, 32, 48, 3)


def test_threads_share_an_engine(pair: VideoEngine) -> None:
    heights = (16, 32, 48, 64)
    with ThreadPoolExecutor(len(heights)) as pool:
        videos = list(pool.map(lambda height: pair.generate(request(height=height)), heights))
    assert [video.frames.shape[1] for video in videos] == list(heights)


def test_unsupported_kernel_is_refused_and_the_ranks_continue(model: str) -> None:
    parallel = ParallelConfig(ring_degree=2, ulysses_degree=1)
    with VideoEngine.from_pretrained(
        model, devices=2, parallel=parallel, attention_kernel="sdpa"
    ) as engine:
        before = [process.pid for process in ranks_of(engine)]
        for _ in range(2):
            with pytest.raises(KernelError, match="'sdpa' cannot run .* returns no log-sum-exp"):
                engine.generate(request())
        assert [process.pid for process in ranks_of(engine)] == before


def test_refused_request_does_not_restart_the_ranks(pair: VideoEngine) -> None:
    with pytest.raises(RequestError, match="height=40 must be a multiple of 16: try 32 or 48"):
        pair.generate(request(height=40))
    assert pair.generate(request()).frames.shape == (9, 32, 48, 3)


def test_true_cfg_branches_run_in_parallel(alone: VideoEngine, pair: VideoEngine) -> None:
    guided = request(true_cfg_scale=3.0, negative_prompt="dog")
    video = pair.generate(guided)
    assert video.metadata.layout.cfg_degree == 2
    np.testing.assert_allclose(video.latents, alone.generate(guided).latents, rtol=0, atol=1e-4)


def test_refused_before_any_rank_starts(model: str, tmp_path: Path) -> None:
    before = len(psutil.Process().children())
    with pytest.raises(ModelError, match="there is no folder"):
        VideoEngine.from_pretrained(tmp_path / "none", devices=2)
    with pytest.raises(LayoutError, match="ulysses_degree=3 needs a multiple of 3 ranks"):
        VideoEngine.from_pretrained(model, devices=2, parallel=ParallelConfig(ulysses_degree=3))
    with pytest.raises(RequestError, match="devices=0 must be at least 1"):
        VideoEngine.from_pretrained(model, devices=0)
    with pytest.raises(RequestError, match="colour is not an option"):
        VideoEngine.from_pretrained(model, colour="blue")
    with pytest.raises(LayoutError, match="devices=2 with 0 GPUs here"):
        VideoEngine.from_pretrained(model, devices=2, device="cuda")
    assert len(psutil.Process().children()) == before


def test_killed_rank_ends_all_and_is_named(pair: VideoEngine) -> None:
    """Last in this file: it ends the shared ranks, and the next request starts new ones."""
    victims = ranks_of(pair)

    def kill(progress: Progress) -> None:
        if progress.phase == "denoising" and progress.done == 2:
            victims[1].kill()

    start = time.monotonic()
    with pytest.raises(EngineError) as caught:
        pair.generate(request(num_inference_steps=10_000), kill)
    assert time.monotonic() - start < 10
    first, *lines = str(caught.value).splitlines()
    assert first.startswith("rank 1 was killed by SIGKILL (exit code -9, denoising, ")
    assert len(lines) <= 12
    assert not any(process.is_running() for process in victims)
    assert pair.generate(request()).frames.shape == (9, 32, 48, 3)
