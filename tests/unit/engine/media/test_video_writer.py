"""Every format keeps the frames, appears only once complete, and leaves nothing after a failure."""

from __future__ import annotations

import errno
import gc
import io
import json
import os
from pathlib import Path
from typing import Any

import imageio.v3 as iio
import numpy as np
import pytest
from PIL import Image, ImageSequence
from safetensors.numpy import load_file

from longtake.configs.engine import EngineConfig
from longtake.configs.request import ResolvedRequest
from longtake.engine.media.frame_writers import _CODECS, _FailsOnce
from longtake.engine.media.latents import read_latents
from longtake.engine.media.output_files import check_output
from longtake.engine.media.paths import OutputTarget
from longtake.engine.media.video_writer import VideoFiles
from longtake.errors import EngineError, RequestError, Stopped
from tests.rendering import Array, request

ENGINE = EngineConfig()
SUFFIXES = [".mp4", ".webm", ".gif", ".npy", ""]


def smooth_frames(num_frames: int = 9, height: int = 48, width: int = 64) -> Array:
    """A bright bar that moves over a gradient."""
    frames = np.zeros((num_frames, height, width, 3), dtype=np.float32)
    frames[..., 0] = np.linspace(0, 1, width)
    frames[..., 2] = 0.5
    for index, frame in enumerate(frames):
        frame[:, 4 * index : 4 * index + 8, 1] = 1
    return frames


def write(path: Path, resolved: ResolvedRequest, videos: list[Array]) -> None:
    with VideoFiles(OutputTarget(path, metadata=False), resolved, ENGINE) as files:
        for video, frames in enumerate(videos):
            for index, frame in enumerate(frames):
                files.frame(video, index, frame)
        files.publish({})


def read(path: Path) -> Array:
    if path.suffix == ".npy":
        array: Array = np.load(path)
        return array
    if path.is_dir():
        frames = [iio.imread(file) for file in sorted(path.iterdir())]
    else:
        plugin: Any = "pillow" if path.suffix == ".gif" else "pyav"
        with iio.imopen(path, "r", plugin=plugin) as file:
            frames = [frame[..., :3] for frame in file.iter()]
    scaled: Array = np.stack(frames).astype(np.float32) / np.float32(255)
    return scaled


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_frames_are_read_back(tmp_path: Path, suffix: str) -> None:
    frames, path = smooth_frames(), tmp_path / f"out{suffix}"
    write(path, request(height=48, width=64), [frames])
    assert [each.name for each in tmp_path.iterdir()] == [path.name]
    again = read(path)
    assert again.shape == frames.shape
    if suffix == ".npy":
        assert again.dtype == np.float32
        np.testing.assert_array_equal(again, frames)
    elif suffix == "":
        np.testing.assert_allclose(again, frames, rtol=0, atol=0.5 / 255 + 1e-6)
    else:
        assert np.abs(again - frames).mean() < 0.1


@pytest.mark.parametrize("suffix", [".mp4", ".webm"])
def test_frame_rate(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"out{suffix}"
    write(path, request(fps=12.5), [smooth_frames()])
    assert iio.immeta(path, plugin="pyav")["fps"] == pytest.approx(12.5)


@pytest.mark.parametrize("suffix", [".mp4", ".webm", ".gif"])
def test_the_same_frames_give_the_same_bytes(tmp_path: Path, suffix: str) -> None:
    paths = [tmp_path / f"{name}{suffix}" for name in "ab"]
    for path in paths:
        write(path, request(), [smooth_frames()])
    assert paths[0].read_bytes() == paths[1].read_bytes()


@pytest.mark.parametrize(("fps", "each_ms"), [(8, 120), (24, 40), (30, 30), (60, 20), (999, 20)])
def test_a_gif_has_the_nearest_possible_rate(tmp_path: Path, fps: float, each_ms: int) -> None:
    """Its unit is 10 ms, and browsers slow down frames shorter than 20 ms."""
    write(tmp_path / "out.gif", request(fps=fps), [smooth_frames()])
    with Image.open(tmp_path / "out.gif") as gif:
        lasts = [frame.info["duration"] for frame in ImageSequence.Iterator(gif)]
    assert lasts == [each_ms] * 9


@pytest.mark.parametrize("shape", [(1, 16, 16), (5, 36, 20), (1, 17, 33)])
def test_odd_shapes(tmp_path: Path, shape: tuple[int, int, int]) -> None:
    for suffix in SUFFIXES:
        path = tmp_path / f"out{suffix}"
        write(path, request(num_frames=shape[0]), [smooth_frames(*shape)])
        assert read(path).shape[1:] == (*shape[1:], 3)


def test_several_videos_are_numbered(tmp_path: Path) -> None:
    videos = [smooth_frames() * 0.5, smooth_frames()]
    write(tmp_path / "out.npy", request(num_videos=2), videos)
    assert sorted(each.name for each in tmp_path.iterdir()) == ["out-0.npy", "out-1.npy"]
    for number, frames in enumerate(videos):
        np.testing.assert_array_equal(read(tmp_path / f"out-{number}.npy"), frames)


def test_latents_are_written_as_they_are(tmp_path: Path) -> None:
    latents = np.random.default_rng(0).random((2, 4, 3, 2, 2), dtype=np.float32)
    with VideoFiles(
        OutputTarget(tmp_path / "out.safetensors"), request(num_videos=2), ENGINE
    ) as files:
        files.latents(latents)
        files.publish({"seed": 3})
    assert json.loads((tmp_path / "out.safetensors.json").read_text()) == {"seed": 3}
    for number in range(2):
        (tensor,) = load_file(tmp_path / f"out-{number}.safetensors").values()
        np.testing.assert_array_equal(tensor, latents[number])


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_an_interrupted_video_leaves_nothing(tmp_path: Path, suffix: str) -> None:
    (tmp_path / "out.mp4").write_bytes(b"an older video")
    path = tmp_path / f"out{suffix}"
    with pytest.raises(KeyboardInterrupt), VideoFiles(OutputTarget(path), request(), ENGINE) as out:
        out.frame(0, 0, smooth_frames()[0])
        raise KeyboardInterrupt
    gc.collect()
    assert [each.name for each in tmp_path.iterdir()] == ["out.mp4"]
    assert (tmp_path / "out.mp4").read_bytes() == b"an older video"


class FilledUp(io.FileIO):
    """A file on a disk with 1 KiB left."""

    room = 1024

    def write(self, data: Any) -> int:
        self.room -= len(data)
        if self.room < 0 and os.path.samestat(os.fstat(self.fileno()), os.stat(self.name)):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return super().write(data)


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_full_disk_is_one_line_and_leaves_nothing(
    tmp_path: Path, suffix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def open_filled_up(path: Path, mode: str, buffering: int = -1) -> Any:
        raw = FilledUp(path, mode)
        return raw if buffering == 0 else io.BufferedWriter(raw)

    def write_nothing(path: Path, frame: Array, **settings: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(Path, "open", open_filled_up)
    monkeypatch.setattr(iio, "imwrite", write_nothing)
    noise = np.random.default_rng(0).random((9, 64, 64, 3), dtype=np.float32)
    with pytest.raises(EngineError) as caught:
        write(tmp_path / f"out{suffix}", request(), [noise])
    assert str(caught.value).endswith(f"out{suffix} cannot be written: No space left on device")
    del caught
    gc.collect()
    assert list(tmp_path.iterdir()) == []


def test_a_disk_that_fills_up_at_the_last_byte(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Closing the file fails, and closes it all the same."""

    def full(target: Any) -> None:
        io.BufferedWriter.close(target)
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(_FailsOnce, "close", full)
    with pytest.raises(EngineError, match="out.mp4 cannot be written: No space left on device"):
        write(tmp_path / "out.mp4", request(), [smooth_frames()])
    assert list(tmp_path.iterdir()) == []


def test_outputs_that_cannot_be_written_are_refused(tmp_path: Path) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "something").touch()
    (tmp_path / "folder.mp4").mkdir()
    (tmp_path / "movie.mp4.json").mkdir()
    (tmp_path / "dangling").symlink_to("nowhere")
    os.mkfifo(tmp_path / "pipe.mp4")
    for name, text in {
        "no/out.mp4": "there is no folder",
        "out.avi": "has the suffix '.avi': use .mp4",
        "full": "exists and is not an empty folder",
        "full/something": "exists and is not an empty folder",
        "folder.mp4": "is a folder: name a file in it",
        "dangling": "exists and is not an empty folder",
        "..": "has no name",
        "pipe.mp4": "is a pipe or a device",
        "movie.mp4": "movie.mp4.json is a folder: move it, or pass --no-metadata",
    }.items():
        with pytest.raises(RequestError, match=text) as caught:
            check_output(OutputTarget(tmp_path / name), 1)
        assert "\n" not in str(caught.value)
        assert str(caught.value).count("output=") <= 1
    for name in ("", ".", "./", "/"):
        with pytest.raises(RequestError, match="has no name"):
            check_output(OutputTarget(Path(name)), 2)
    check_output(OutputTarget(tmp_path / "OUT.MP4"), 3)
    check_output(OutputTarget(tmp_path / "movie.mp4", metadata=False), 1)


def test_an_existing_folder_is_filled(tmp_path: Path) -> None:
    """It may be a link, a mount or a working directory, and is not replaced."""
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    write(tmp_path / "link", request(), [smooth_frames()])
    assert (tmp_path / "link").is_symlink()
    assert sorted(each.name for each in (tmp_path / "real").iterdir()) == [
        f"{index:05d}.png" for index in range(9)
    ]


def test_a_disk_that_is_full_at_the_metadata_keeps_the_old_video(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither the video nor its metadata appear."""
    (tmp_path / "out.mp4").write_bytes(b"an older video")

    def no_room(path: Path, *content: Any, **settings: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(Path, "write_text", no_room)
    with pytest.raises(EngineError, match="out.mp4.json cannot be written: No space left"):
        with VideoFiles(
            OutputTarget(tmp_path / "out.mp4", overwrite=True), request(), ENGINE
        ) as files:
            for index, frame in enumerate(smooth_frames()):
                files.frame(0, index, frame)
            files.publish({})
    assert [each.name for each in tmp_path.iterdir()] == ["out.mp4"]
    assert (tmp_path / "out.mp4").read_bytes() == b"an older video"


def test_a_folder_without_space_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Found by writing a test file, which is removed."""

    def no_room(path: Path, content: bytes) -> None:
        path.touch()
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(Path, "write_bytes", no_room)
    with pytest.raises(RequestError, match="cannot be written to: No space left on device"):
        check_output(OutputTarget(tmp_path / "out.mp4"), 1)
    assert list(tmp_path.iterdir()) == []


def test_the_longest_file_name(tmp_path: Path) -> None:
    path = tmp_path / ("é" * 125 + ".npy")  # 254 bytes
    check_output(OutputTarget(path, metadata=False), 1, keeps=False)
    write(path, request(num_videos=1), [smooth_frames()])
    assert [each.name for each in tmp_path.iterdir()] == [path.name]
    with pytest.raises(RequestError, match="too long"):
        check_output(OutputTarget(path, metadata=False), num_videos=2)  # name-0, name-1
    with pytest.raises(RequestError, match="too long"):
        check_output(OutputTarget(tmp_path / ("x" * 250 + ".mp4")), 1, keeps=False)  # .mp4.json
    longest = "x" * (255 - len(".snapshot-9.safetensors"))
    check_output(OutputTarget(tmp_path / f"{longest}.mp4"), 1)
    with pytest.raises(RequestError, match=r"snapshot-9.safetensors', written next to it, cannot"):
        check_output(OutputTarget(tmp_path / f"{longest}x.mp4"), 1)


def test_an_encoder_that_fails_keeps_the_latents(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """H.263 supports five sizes, and not this one."""
    monkeypatch.setitem(_CODECS, ".mp4", "h263")
    path = tmp_path / "out.mp4"
    latents = np.zeros((1, 4, 3, 6, 8), dtype=np.float32)
    with (
        pytest.raises(EngineError) as caught,
        VideoFiles(OutputTarget(path), request(), ENGINE) as files,
    ):
        files.latents(latents)
        for index, frame in enumerate(smooth_frames()):
            files.frame(0, index, frame)
    assert str(caught.value).startswith(f"{path} cannot be written: ")
    assert "; the latents are kept, and can be decoded: longtake decode " in str(caught.value)
    assert "\n" not in str(caught.value)
    assert [each.name for each in tmp_path.iterdir()] == ["out.latents.safetensors"]
    np.testing.assert_array_equal(
        read_latents(tmp_path / "out.latents.safetensors").latents, latents
    )


def test_a_failure_to_keep_latents_is_logged_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def no_room(path: Path, content: bytes) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(Path, "write_bytes", no_room)
    with VideoFiles(OutputTarget(tmp_path / "out.npy", metadata=False), request(), ENGINE) as files:
        files.latents(np.zeros((1, 4, 3, 6, 8), dtype=np.float32))
        for index, frame in enumerate(smooth_frames()):
            files.frame(0, index, frame)
        files.publish({})
    assert [each.name for each in tmp_path.iterdir()] == ["out.npy"]
    assert "out.latents.safetensors cannot keep the latents: No space left" in caplog.text


@pytest.mark.parametrize("suffix", [".mp4", ".webm", ".npy", ""])
def test_frames_are_written_as_they_arrive(tmp_path: Path, suffix: str) -> None:
    """The encoders hold back some 50 of them."""
    rng = np.random.default_rng(0)
    still = np.kron(rng.random((32, 32, 3), dtype=np.float32), np.ones((8, 8, 1), np.float32))
    resolved = request(num_frames=129, height=256, width=256, fps=24)
    with VideoFiles(OutputTarget(tmp_path / f"out{suffix}"), resolved, ENGINE) as files:
        for index in range(100):
            files.frame(0, index, np.roll(still, index, axis=1))
        (partial,) = tmp_path.iterdir()
        written = [partial] if suffix else list(partial.iterdir())
        assert sum(path.stat().st_size for path in written) > 1000


def test_a_video_that_lacks_frames_is_not_published(tmp_path: Path) -> None:
    with pytest.raises(EngineError, match="out.mp4 lacks frames"):
        write(tmp_path / "out.mp4", request(num_frames=13), [smooth_frames(9)])
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("kind", [KeyboardInterrupt, Stopped])
def test_a_stopped_video_keeps_no_latents(tmp_path: Path, kind: type[BaseException]) -> None:
    with (
        pytest.raises(kind),
        VideoFiles(OutputTarget(tmp_path / "out.npy"), request(), ENGINE) as files,
    ):
        files.latents(np.zeros((1, 4, 3, 6, 8), dtype=np.float32))
        assert [each.name for each in tmp_path.iterdir()] == ["out.latents.safetensors"]
        raise kind
    assert list(tmp_path.iterdir()) == []
