"""A server or batch removes and replaces only files that longtake wrote."""

from __future__ import annotations

import logging
import os
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from longtake.errors import EngineError, RequestError
from longtake.serve.batch.report import check_reports, write_report
from longtake.serve.batch.shot_checker import Shot, ShotChecker
from longtake.serve.batch.shots import InvalidRow, Row
from longtake.serve.queue.job_records import NewJob
from longtake.serve.queue.job_store import JobStore
from longtake.serve.runner.outputs import job_key, sweep, sweep_partials
from longtake.serve.runner.scratch import prepare_folder
from longtake.serve.service.pictures import Pictures
from tests.rendering import request

HEX = "0123456789abcdef"
OURS = [
    f"video_{HEX}{HEX}-{HEX}",
    f"video_{HEX}{HEX}-{HEX[:12]}",
    f"sent-{HEX}{HEX}",
    f".video_{HEX}{HEX}-0.{HEX[:8]}.{HEX[8:]}.partial",
    f".sent-{HEX}{HEX}.{HEX[:8]}.{HEX[8:]}.partial",
]
NOT_OURS = [
    "holiday.jpg",
    ".hidden",
    "sent-",
    "sent-to-grandma.png",
    f"sent-{HEX}{HEX}.png",
    f"sent-{HEX}{HEX[1:]}G",
    f"video_{HEX}{HEX}",
    f"video_{HEX}{HEX}-{HEX}.mp4",
    f"video_{HEX}-{HEX}",
    ".draft.partial",
]


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize("through_a_link", [False, True])
def test_foreign_pictures_are_kept(
    tmp_path: Path, through_a_link: bool, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    real, folder = tmp_path / "real", tmp_path / "pictures"
    real.mkdir()
    if through_a_link:
        folder.symlink_to(real)
    else:
        folder = real
    for name in [*OURS, *NOT_OURS]:
        (folder / name).touch()
        os.utime(folder / name, (0, 0))
    link, wanted = folder / f"sent-{HEX[::-1]}{HEX}", folder / f"video_{HEX[::-1]}{HEX}-{HEX}"
    link.symlink_to(folder / "holiday.jpg")
    wanted.touch()
    (folder / f"sent-{HEX}{HEX[::-1]}").mkdir()
    pictures = Pictures(folder)
    pictures.drop(folder / "holiday.jpg")
    pictures.drop_old()
    assert set(NOT_OURS) <= set(names(folder))
    pictures.sweep([wanted])
    left = [*NOT_OURS, link.name, wanted.name, f"sent-{HEX}{HEX[::-1]}"]
    assert names(folder) == sorted(left)
    assert "removed 4 unused pictures" in caplog.text


def test_foreign_snapshots_and_partial_files_are_kept(tmp_path: Path) -> None:
    with JobStore(tmp_path, create=True) as store:
        job = NewJob("a", "x", 0, "out/a.mp4", "engine", request(), "f")
        store.enqueue([job], lambda job: True, 0.0)
        kept, out = tmp_path / ".longtake" / "snapshots", tmp_path / "out"
        kept.mkdir()
        out.mkdir()
        key = job_key("a")
        for name in ("mine.safetensors", f"{HEX[:12]}.safetensors", f"{key}.safetensors"):
            (kept / name).touch()
        (kept / f"{HEX[::-1][:12]}.safetensors").symlink_to(kept / "mine.safetensors")
        sweep(store)
        assert names(kept) == sorted(
            ["mine.safetensors", f"{key}.safetensors", f"{HEX[::-1][:12]}.safetensors"]
        )
        others = [".mine.partial", f".x.{key}-notes.partial", f"a.{HEX[:8]}.{key}-1.partial.mp4"]
        for name in (f".a.{HEX[:8]}.{key}-1.partial.mp4", *others):
            (out / name).touch()
        (out / f".a.{HEX[:8]}.{key}-2.partial").mkdir()
        (out / f".a.{HEX[:8]}.{key}-3.partial").symlink_to(tmp_path)
        folders = NewJob("b", "x", 0, "out/b", "engine", request(num_videos=2), "f")
        store.enqueue([folders], lambda job: True, 0.0)
        (out / "b-1" / f".b-1.{HEX[:8]}.{job_key('b')}-1.partial").mkdir(parents=True)
        sweep_partials(tmp_path, store.job("b"))
        assert names(out / "b-1") == []
        (out / "b-1").rmdir()
        sweep_partials(tmp_path, store.job("a"))
        assert names(out) == sorted(others)
        assert kept.is_dir()


def test_unwritable_folders_are_refused(tmp_path: Path) -> None:
    """The message is one line, and no partial folders are left."""
    for at, (name, make) in enumerate(
        (
            (".longtake", Path.touch),
            ("videos", Path.touch),
            ("pictures", lambda path: path.symlink_to("nowhere")),
            (".longtake/strips", Path.touch),
            (".longtake/jobs.sqlite", Path.mkdir),
            (".longtake/serve.lock", os.mkfifo),
        )
    ):
        folder = tmp_path / str(at)
        (folder / name).parent.mkdir(parents=True)
        make(folder / name)
        before = sorted(folder.rglob("*"))
        with pytest.raises(RequestError, match="data_dir=.* cannot be written to") as caught:
            prepare_folder("data_dir", folder, "videos", "pictures")
        assert "\n" not in str(caught.value)
        assert sorted(folder.rglob("*")) == before
    (tmp_path / "file").touch()
    with pytest.raises(RequestError, match="cannot be written to"):
        prepare_folder("output", tmp_path / "file" / "deep")
    prepare_folder("output", tmp_path / "a" / "b", "videos")
    assert names(tmp_path / "a" / "b") == [".longtake", "videos"]


@pytest.mark.parametrize("name", ["report.json", "report.html"])
def test_foreign_reports_are_kept(tmp_path: Path, name: str) -> None:
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    for _ in range(2):  # an earlier one of a batch is replaced
        check_reports(tmp_path)
        write_report(tmp_path, [], scratch)
    for content in ('{"shots": 3}', "<h1>longtake</h1>", "", "[" * 100_000):
        (tmp_path / name).write_text(content)
        with pytest.raises(RequestError, match=f"{name} exists and is not a report of a batch"):
            check_reports(tmp_path)
        with pytest.raises(EngineError, match="is not a report"):
            write_report(tmp_path, [], scratch)
        assert (tmp_path / name).read_text() == content


class Engine:
    """Resolves every request to itself, with a random seed."""

    config = SimpleNamespace(model="org/a model")

    def identity_part(self) -> str:
        return ""

    def resolve(self, requested: Any) -> Any:
        seed = time.monotonic_ns() % 2**32 if requested.seed is None else requested.seed
        return request(seed=seed, num_videos=requested.num_videos)


def told_apart(
    checker: ShotChecker, rows: list[Row], known: dict[str, Any]
) -> tuple[list[Shot], list[InvalidRow]]:
    """The shots of some rows, and the invalid rows."""
    found = list(checker.check(rows, known))
    shots = [each for each in found if isinstance(each, Shot)]
    return shots, [each for each in found if isinstance(each, InvalidRow)]


def test_placeholders_in_output_names_are_filled(tmp_path: Path) -> None:
    """The seed and the date of the first run are kept, so the shot is not rendered again."""
    checker = ShotChecker(Engine(), tmp_path, tmp_path / "x.jsonl", {})  # type: ignore[arg-type]
    rows: list[dict[str, Any]] = [
        {"prompt": "a", "id": "one", "seed": 7, "output": "{model}/{id}-{seed}.mp4"},
        {"prompt": "a", "id": "two", "output": "{seed}-{date}.npy"},
        {"prompt": "a", "id": "three", "output": "{model}/one-7.mp4"},
        {"prompt": "a", "output": "{foo}.mp4"},
        {"prompt": "a", "id": "five", "output": "v{index}.npy", "num_videos": 2},
        {"prompt": "a", "id": "six", "output": "v1.npy"},
        {"prompt": "a", "id": "{x}"},
    ]

    def check(known: dict[str, Any]) -> tuple[list[Any], list[str]]:
        numbered = [Row(line, dict(row)) for line, row in enumerate(rows, start=1)]
        shots, bad = told_apart(checker, numbered, known)
        return shots, [f"{each.line}: {each.reason[:60]}" for each in bad]

    shots, bad = check({})
    assert [shot.output for shot in shots[::2]] == ["a-model/one-7.mp4", "v{index}.npy"]
    assert shots[3].output == "{x}.mp4"
    assert bad == [
        "3: output='a-model/one-7.mp4' writes a-model/one-7.mp4, as line",
        "4: output='{foo}.mp4' has {foo}: use {seed}, {id}, {date}, {mod",
        "6: output='v1.npy' writes v1.npy, as line 5",
    ]
    known = {
        shot.id: SimpleNamespace(fingerprint=shot.fingerprint, output=shot.output, state="done")
        for shot in shots
    }
    time.sleep(1e-6)
    assert [shot.output for shot in check(known)[0]] == [shot.output for shot in shots]


def test_rows_that_would_replace_a_file_are_refused(tmp_path: Path) -> None:
    (tmp_path / "mine.mp4").write_text("mine")
    (tmp_path / "notes.mp4.json").write_text('{"my": "notes"}')
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "a.jpg").touch()
    (tmp_path / "file").touch()
    (tmp_path / "ours.mp4").touch()
    (tmp_path / "ours.json").write_text('{"batch": {"id": "ours"}}')
    checker = ShotChecker(Engine(), tmp_path, tmp_path / "x.jsonl", {})  # type: ignore[arg-type]
    outputs = ["mine.mp4", "notes.mp4", "photos", "file/x.mp4", "ours.mp4", "new.mp4"]
    rows = [
        Row(at, {"prompt": "a", "id": Path(o).stem, "output": o}) for at, o in enumerate(outputs)
    ]
    shots, bad = told_apart(checker, rows, {})
    assert [shot.output for shot in shots] == ["ours.mp4", "new.mp4"]
    did_not = "exists already, and this batch did not make it: move it, or name another output"
    for row, words in zip(
        bad, [did_not, did_not, did_not, "is a file: name a folder"], strict=True
    ):
        assert row.reason.endswith(words)
