"""Outputs never replace files unasked, and are refused before anything is rendered."""

from __future__ import annotations

import json
import os
import re
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from longtake.cli import main as cli
from longtake.configs.engine import EngineConfig
from longtake.engine.media.output_files import check_output, free_output, place_all
from longtake.engine.media.output_names import (
    check_index,
    fill_placeholders,
    pattern_of,
    placeholder_values,
    request_id,
)
from longtake.engine.media.paths import OutputTarget, metadata_path, output_paths
from longtake.engine.media.video_writer import VideoFiles
from longtake.errors import RequestError
from longtake.files.atomic import rename_to_unused, write_to_unused
from tests.rendering import request

OURS = json.dumps({"request": {}, "engine": {}})
FRAMES = np.zeros((9, 32, 48, 3), np.float32)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def publish(files: VideoFiles, num_videos: int = 1) -> None:
    with files:
        for video in range(num_videos):
            for index, frame in enumerate(FRAMES):
                files.frame(video, index, frame)
        files.publish({"request": {}, "engine": {}})


def test_existing_files_are_refused(tmp_path: Path) -> None:
    (tmp_path / "file.mp4").touch()
    (tmp_path / "dangling.mp4").symlink_to("nowhere")
    (tmp_path / "sidecar.mp4.json").write_text(OURS)
    (tmp_path / "several-1.mp4").touch()
    (tmp_path / "several.mp4").touch()
    for name, num_videos, there in (
        ("file.mp4", 1, "file.mp4"),
        ("dangling.mp4", 1, "dangling.mp4"),
        ("sidecar.mp4", 1, "sidecar.mp4.json"),
        ("several.mp4", 2, "several-1.mp4"),
        ("several-{index}.mp4", 2, "several-1.mp4"),
    ):
        path = tmp_path / name
        with pytest.raises(RequestError, match=rf"{there}'? already exists: .*--overwrite") as e:
            check_output(OutputTarget(path), num_videos)
        assert "\n" not in str(e.value)
        check_output(OutputTarget(path, overwrite=True), num_videos)
    (tmp_path / "cat.json").write_text("mine")
    check_output(OutputTarget(tmp_path / "cat.mp4"), 1)
    check_output(OutputTarget(tmp_path / "cat", metadata=False), 1)


def test_overwrite_keeps_files_of_others(tmp_path: Path) -> None:
    (tmp_path / "cat.mp4.json").write_text('{"my": "notes"}')
    (tmp_path / "link.mp4.json").symlink_to("cat.mp4.json")
    (tmp_path / "protected.mp4").touch(mode=0o444)
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "00000.png").touch()
    os.mkfifo(tmp_path / "pipe.mp4.json")
    for name, words in {
        "cat.mp4": "is not a video's metadata: move it, or pass --no-metadata",
        "link.mp4": "is not a video's metadata",
        "pipe.mp4": "is not a video's metadata",
        "protected.mp4": "is read-only",
        "photos": "that longtake did not write",
    }.items():
        with pytest.raises(RequestError, match=words):
            check_output(OutputTarget(tmp_path / name, overwrite=True), 1)
    (tmp_path / "photos.json").write_text(OURS)
    check_output(OutputTarget(tmp_path / "photos", overwrite=True), 1)


def test_a_file_that_appears_meanwhile_is_kept(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The video gets another name, with its metadata, and the log says so."""
    for num_videos, taken, given in (
        (1, "one.npy", ["one-2.npy"]),
        (1, "two.npy.json", ["two-2.npy"]),
        (1, "three", ["three-2"]),
        (2, "four-1.npy", ["four-2-0.npy", "four-2-1.npy"]),
    ):
        name = re.sub(r"-1|\.json", "", taken)
        files = VideoFiles(
            OutputTarget(tmp_path / name), request(num_videos=num_videos), EngineConfig()
        )
        (tmp_path / taken).write_text("of another process")
        publish(files, num_videos)
        assert files.paths == [tmp_path / each for each in given]
        assert (tmp_path / taken).read_text() == "of another process"
        assert f"{tmp_path / name} was created by another process meanwhile" in caplog.text
        for each in (tmp_path / taken, *files.paths):
            os.rename(each, tmp_path.parent / each.name)
    left = ["four-2.npy.json", "one-2.npy.json", "three-2.json", "two-2.npy.json"]
    assert names(tmp_path) == left


def test_a_folder_that_is_filled_meanwhile_is_kept(tmp_path: Path) -> None:
    (tmp_path / "frames").mkdir()
    files = VideoFiles(OutputTarget(tmp_path / "frames", metadata=False), request(), EngineConfig())
    (tmp_path / "frames" / "00003.png").touch()
    publish(files)
    assert names(tmp_path / "frames") == ["00003.png"]
    assert len(names(tmp_path / "frames-2")) == 9


def test_overwriting_a_folder_keeps_other_files(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    for name in ("00000.png", "00009.png", "00010.png", "00012.png", "notes.txt"):
        (tmp_path / "out" / name).write_text("before")
    publish(VideoFiles(OutputTarget(tmp_path / "out", overwrite=True), request(), EngineConfig()))
    assert names(tmp_path / "out")[9:] == ["00012.png", "notes.txt"]
    assert (tmp_path / "out" / "00000.png").read_bytes() != b"before"


def test_all_files_are_renamed_or_none(tmp_path: Path) -> None:
    moves = [(tmp_path / f"{name}.partial", tmp_path / name) for name in "abc"]
    for partial, path in moves:
        partial.write_text(path.name)
    (tmp_path / "c").write_text("taken")
    assert not place_all(moves)
    assert names(tmp_path) == ["a.partial", "b.partial", "c", "c.partial"]
    (tmp_path / "c").unlink()
    assert place_all(moves)
    assert [(tmp_path / name).read_text() for name in names(tmp_path)] == ["a", "b", "c"]


def test_a_file_system_without_hard_links(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(source: Any, target: Any) -> None:
        raise PermissionError

    monkeypatch.setattr(os, "link", refused)
    (tmp_path / "a").write_text("a")
    (tmp_path / "b").write_text("b")
    with pytest.raises(FileExistsError):
        rename_to_unused(tmp_path / "a", tmp_path / "b")
    rename_to_unused(tmp_path / "a", tmp_path / "c")
    assert [(tmp_path / name).read_text() for name in names(tmp_path)] == ["b", "a"]
    assert write_to_unused(tmp_path / "b", b"x").name == "b-2"


def test_default_names_are_numbered(tmp_path: Path) -> None:
    def free(num_videos: int = 1) -> str:
        return free_output(tmp_path / "out.mp4", num_videos, metadata=True).name

    for name, following in (
        ("out.mp4", "out-2.mp4"),
        ("out-2.snapshot.safetensors", "out-3.mp4"),
        ("out-3.latents.safetensors", "out-4.mp4"),
        ("out-4.mp4.json", "out-5.mp4"),
        ("out-5.mp4", "out-6.mp4"),
    ):
        (tmp_path / name).touch()
        assert free() == following
    (tmp_path / "out-6-1.mp4").touch()
    assert (free(), free(2)) == ("out-6.mp4", "out-7.mp4")


def test_placeholders_are_replaced() -> None:
    values = placeholder_values(seed=7, name="a-cat", model="org/Some Model!/", num_videos=2)
    name = fill_placeholders("{model}_{seed}_{id}_{date}_{index}_{{x}}.mp4", values)
    assert name == f"Some-Model_7_a-cat_{date.today()}_{{index}}_{{x}}.mp4"
    paths = output_paths(Path("d/cat-{index}.mp4"), 2)
    assert paths == [Path("d/cat-0.mp4"), Path("d/cat-1.mp4")]
    assert metadata_path(Path("cat-{index}.mp4")) == Path("cat-0.mp4.json")
    assert placeholder_values(seed=None, name="", model=".", num_videos=1)["index"] == "0"
    for model in ("/", "..", "\0", "a/../..", "x" * 999):
        made = placeholder_values(seed=None, name="", model=model, num_videos=1)["model"]
        assert re.fullmatch(r"[\w.-]{1,100}", made) and made.strip(".")
    assert re.fullmatch(pattern_of("a.{id}-{seed}", {"id": "x+"}), "a.x+-7")
    assert not re.fullmatch(pattern_of("a.{id}-{seed}", {"id": "x+"}), "abx+-7")
    assert request_id({"prompt": "A cat, slowly!", "seed": 1}).startswith("a-cat-slowly-")
    assert request_id({"prompt": "猫", "seed": 1}) != request_id({"prompt": "猫", "seed": 2})


@pytest.mark.parametrize(
    "template",
    [
        "{foo}",
        "{seed.__class__}",
        "{seed!r}",
        "{seed:>99999}",
        "{}",
        "{0}",
        "{seed",
        "a}",
        "{ id}",
    ],
)
def test_unknown_placeholders_are_refused(template: str) -> None:
    known = "use {seed}, {id}, {date}, {model}, {index}, or {{ and }} for braces"
    values = placeholder_values(seed=7, name="a", model="m", num_videos=1)
    with pytest.raises(RequestError, match=re.escape(known)) as caught:
        fill_placeholders(f"{template}.mp4", values)
    assert len(str(caught.value)) < 200
    with pytest.raises(RequestError, match="one folder"):
        check_index(Path("{index}/cat.mp4"))


def test_outputs_are_refused_before_the_model_is_opened(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A hub id would be downloaded."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "cat-7.mp4").write_text("a finished video")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine").touch()
    for output, words in (
        ("cat-{seed}.mp4", "output='cat-7.mp4' already exists: name another output"),
        ("cat-{what}.mp4", "has {what}: use {seed}, {id}"),
        ("", "has no name"),
        ("full", "is not an empty folder"),
        ("x" * 240 + ".mp4", "written next to it, cannot be a file: File name too long"),
    ):
        arguments = ["generate", "a", "--seed", "7", "--model", "/no/where", "-o", output]
        assert cli.main(arguments) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert words in line
    assert names(tmp_path) == ["cat-7.mp4", "full"]
    for arguments in (["--calibrate", "-o", "mine.yaml"], ["-o", "mine.md"]):
        (tmp_path / arguments[-1]).write_text("mine")
        assert cli.main(["bench", "--model", "/no/where", *arguments]) == 2
        assert "already exists: name another one, or pass" in capsys.readouterr().err
        assert cli.main(["bench", "--model", "/no/where", *arguments, "--overwrite"]) == 2
        assert "there is no folder /no/where" in capsys.readouterr().err
