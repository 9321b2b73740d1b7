"""longtake batch and longtake jobs."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest

from longtake.serve.queue.job_store import JobStore
from tests.kills import LONGTAKE, BatchProcess

Batch = Callable[..., tuple[int, str, str]]


def times(folder: Path) -> dict[str, int]:
    return {path.name: path.stat().st_mtime_ns for path in folder.glob("**/*.npy")}


def test_batch_renders_once_and_again_what_changed(
    run_command: Batch, model: str, tmp_path: Path
) -> None:
    shots, out = tmp_path / "shots.csv", tmp_path / "deep" / "out"
    batch = ("batch", shots, "-o", out, "--model", model, "--num-frames", 5)
    shots.write_text(
        "id,output,prompt,seed,num_inference_steps\n"
        'one,a/one.npy,"a cat, ""slowly""",1,3\n'
        "two,two.npy,a dog,,3\n"
        "png,png,a dog,3,3\n"
    )
    code, stdout, stderr = run_command(*batch)
    assert code == 0
    *table, last = stdout.splitlines()
    assert [line.split()[:2] for line in table] == [
        ["id", "state"],
        *([name, "done"] for name in ("one", "two", "png")),
    ]
    assert last == f"3 done; see {out}/report.json and {out}/report.html"
    assert "3 shots: 3 new" in stderr
    assert re.search(r"^two: done \(2 of 3 done\)$", stderr, re.MULTILINE)
    files = {str(path.relative_to(out)) for path in out.rglob("*") if ".longtake" not in str(path)}
    assert files == {
        *(
            "a",
            "a/one.npy",
            "a/one.npy.json",
            "two.npy",
            "two.npy.json",
            "report.json",
            "report.html",
        ),
        *("png", "png.json", *(f"png/0000{at}.png" for at in range(5))),
    }
    assert np.load(out / "a" / "one.npy").shape == (5, 32, 48, 3)
    metadata = json.loads((out / "a" / "one.npy.json").read_text())
    assert metadata["request"]["prompt"] == 'a cat, "slowly"'
    assert metadata["batch"]["id"] == "one"
    report = json.loads((out / "report.json").read_text())
    assert report["counts"] == {"done": 3}
    assert [shot["id"] for shot in report["shots"]] == ["one", "two", "png"]
    page = (out / "report.html").read_text()
    assert page.count("data:image/jpeg;base64,") == 3
    assert "a cat, &#34;slowly&#34;" in page

    before, two = times(out), (out / "two.npy").read_bytes()
    assert run_command(*batch)[0] == 0
    assert times(out) == before
    (out / "two.npy").unlink()  # its drawn seed is in the queue
    shots.write_text(shots.read_text().replace("slowly", "fast").replace("png,a dog", "png,a cat"))
    code, _, stderr = run_command(*batch)
    assert code == 0
    assert "3 shots: 2 changed, 1 again" in stderr
    assert (out / "two.npy").read_bytes() == two
    assert times(out)["one.npy"] > before["one.npy"]
    assert sorted(path.name for path in (out / "png").iterdir()) == [
        f"0000{at}.png" for at in range(5)
    ]
    assert not [path for path in out.rglob(".*") if path.name != ".longtake"]

    code, stdout, _ = run_command("jobs", "list", out)
    assert code == 0
    assert [line.split()[:2] for line in stdout.splitlines()[1:]] == [
        ["one", "done"],
        ["two", "done"],
        ["png", "done"],
    ]
    code, stdout, _ = run_command("jobs", "show", out, "two", "--json")
    kinds = [event["kind"] for event in json.loads(stdout)["events"]]
    assert kinds == ["queued", "running", "done"] * 2


def test_shot_has_the_bytes_that_generate_writes(
    run_command: Batch, model: str, tmp_path: Path
) -> None:
    shots, out, prompt = tmp_path / "shots.jsonl", tmp_path / "out", 'a cat\n"slowly"'
    rows = ({"output": "on.mp4"}, {"output": "off.mp4", "embed_metadata": False})
    shots.write_text("\n".join(json.dumps({"prompt": prompt, **row}) for row in rows))
    options = ("--model", model, "--seed", 5, "--num-frames", 5, "--num-inference-steps", 2)
    assert run_command("batch", shots, "-o", out, *options)[0] == 0
    for name, switch in (("on.mp4", ()), ("off.mp4", ("--no-embed-metadata",))):
        path = tmp_path / name
        assert run_command("generate", prompt, *options, *switch, "-o", path)[0] == 0
        assert path.read_bytes() == (out / name).read_bytes()
        assert (prompt.encode() in path.read_bytes()) == (name == "on.mp4")


def test_long_names_and_reassigned_outputs(run_command: Batch, model: str, tmp_path: Path) -> None:
    shots, out, name = tmp_path / "shots.jsonl", tmp_path / "out", "x" * 60
    one = {"id": name, "prompt": "a", "seed": 5, "num_videos": 2, "output": f"{name}.npy"}
    x, y = ({"id": id, "prompt": "a", "seed": id, "output": "o.npy"} for id in (1, 2))
    batch = ("batch", shots, "-o", out, "--model", model, "--num-inference-steps", 2)
    frames = {}
    for rows in ([one, x], [y], [x]):
        shots.write_text("".join(json.dumps(row) + "\n" for row in rows))
        code, _, stderr = run_command(*batch)
        assert code == 0, stderr
        frames[json.dumps(rows[-1]), len(rows)] = np.load(out / "o.npy")
    first, other, again = frames.values()
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, other)
    assert json.loads((out / "report.json").read_text())["counts"] == {"done": 1}
    videos = [np.load(out / f"{name}-{at}.npy") for at in (0, 1)]
    assert not np.array_equal(*videos)


def test_all_invalid_rows_are_reported_and_nothing_runs(
    run_command: Batch, model: str, tmp_path: Path
) -> None:
    out, shots = tmp_path / "out", tmp_path / "shots.jsonl"
    (tmp_path / "elsewhere").mkdir()
    rows = [
        ({"prompt": "good"}, ""),
        (
            {"prompt": " "},
            "prompt=' ' must not be blank",
        ),
        ({"id": "x"}, "has no prompt"),
        ({"prompt": "a", "height": 33}, r"height=33 must be a multiple of 16: try 32 or 48"),
        ({"prompt": "a", "hight": 32}, "hight is not an option"),
        (
            {"prompt": "a", "seed": -1, "fps": "fast"},
            "fps='fast' must be a number.*; seed=-1 must be",
        ),
        ({"prompt": "a", "id": "same"}, ""),
        ({"prompt": "b", "id": "same"}, "id='same' is also the id of line 7"),
        ({"prompt": "a", "output": "same.mp4"}, r"output='same.mp4' writes same.mp4, as line 7"),
        ({"prompt": "a", "output": "../x.mp4"}, r"output='../x.mp4' leaves "),
        ({"prompt": "a", "output": "/tmp/x.mp4"}, r"output='/tmp/x.mp4' leaves "),
        ({"prompt": "a", "output": "x.avi"}, r"has the suffix '\.avi'"),
        ({"prompt": "a", "output": "report"}, r"writes report.json, which is reserved"),
        ({"prompt": "a", "output": ".longtake/x.mp4"}, r"\.longtake is reserved"),
        ({"prompt": "a", "id": "a/b"}, "id='a/b' must be valid as a file name"),
        ({"prompt": "a", "id": "x" * 300}, "100 bytes at most"),
        ({"prompt": "a", "image": "none.png"}, "with a model that takes no picture"),
        ({"prompt": "a", "num_inference_steps": True}, "must not be true or false"),
        ({"prompt": "a" * 200_000}, "at most 100000"),
        ({"prompt": "a", "ulysses_degree": 2}, "ulysses_degree is not an option"),
        ({"prompt": "a", "output": "png"}, ""),
        ({"prompt": "a", "output": "png/b.npy"}, r"inside png, which line 21 writes"),
        ({"prompt": "a", "output": "c.mp4/d.mp4"}, ""),
        ({"prompt": "a", "output": "c.mp4"}, r"writes c.mp4, a folder that line 23 writes to"),
        ({"prompt": "a", "output": "x" * 300 + "/a.mp4"}, "200 bytes a name at most"),
    ]
    shots.write_text("".join(json.dumps(row) + "\n" for row, _ in rows))
    code, stdout, stderr = run_command("batch", shots, "-o", out, "--model", model)
    assert (code, stdout) == (2, "")
    first, *lines = stderr.splitlines()
    assert first == f"longtake: {shots} has 21 rows that cannot be rendered:"
    expected = [(n, words) for n, (_, words) in enumerate(rows, start=1) if words]
    assert len(lines) == len(expected)
    for line, (number, words) in zip(lines, expected, strict=True):
        assert re.match(rf"  line {number}: .*({words})", line), line
    assert not out.exists()


def test_output_folder_is_required(run_command: Batch, model: str, tmp_path: Path) -> None:
    shots = tmp_path / "shots.txt"
    shots.write_text("a cat\n")
    code, _, stderr = run_command("batch", shots, "--model", model)
    assert (code, stderr) == (
        2,
        "longtake: name a file of shots, and the folder of outputs by -o\n",
    )
    code, _, stderr = run_command("batch", shots, "-o", shots, "--model", model)
    assert code == 2
    assert stderr.endswith("is a file: name a folder\n")


def test_outputs_that_leave_the_folder_through_a_link_are_refused(
    run_command: Batch, model: str, tmp_path: Path
) -> None:
    out, shots = tmp_path / "out", tmp_path / "shots.jsonl"
    (out / "inside").mkdir(parents=True)
    (out / "leaves").symlink_to(tmp_path)
    (out / "stays").symlink_to(out / "inside")
    shots.write_text(
        '{"prompt": "a", "output": "leaves/a.npy"}\n{"prompt": "a", "output": "stays/a.npy"}\n'
    )
    code, _, stderr = run_command("batch", shots, "-o", out, "--model", model)
    assert code == 2
    assert len(stderr.splitlines()) == 2
    assert "line 1: output='leaves/a.npy' leaves " in stderr


def test_dry_run_predicts_the_time(run_command: Batch, model: str, tmp_path: Path) -> None:
    shots, out = tmp_path / "shots.yaml", tmp_path / "out"
    shots.write_text("shots:\n  - {prompt: a cat, id: cat, product: {seed: [1, 2]}}\n  - a dog\n")
    code, stdout, _ = run_command("batch", shots, "-o", out, "--model", model, "--dry-run")
    lines = stdout.splitlines()
    assert code == 0
    assert lines[0].split() == ["id", "output", "size", "frames", "about"]
    assert lines[1].split()[:4] == ["cat-1", "cat-1.mp4", "48x32", "9"]
    assert re.match(r"a-dog-[0-9a-f]{8} ", lines[3])
    assert re.fullmatch(r"3 shots, about [\d.]+ s once the model is loaded", lines[4])
    assert not out.exists()


def test_shot_that_cannot_be_rendered_does_not_stop_others(
    run_command: Batch, model: str, tmp_path: Path
) -> None:
    """Its template leaves no token of the prompt."""
    shots, out = tmp_path / "shots.jsonl", tmp_path / "out"
    template = {"template": "{}", "crop_start": 4}
    rows = [
        {"id": "bad", "prompt": "a", "prompt_template": template, "output": "bad.npy"},
        {"id": "good", "prompt": "a cat", "output": "good.npy", "seed": 1},
    ]
    shots.write_text("".join(json.dumps(row) + "\n" for row in rows))
    batch = ("batch", shots, "-o", out, "--model", model, "--num-inference-steps", 2)
    code, stdout, stderr = run_command(*batch)
    assert (code, stdout.splitlines()[-1].partition(";")[0]) == (1, "1 failed, 1 done")
    assert re.search(r"^longtake: bad failed: no token of prompt='a' is left", stderr, re.MULTILINE)
    assert (out / "good.npy").is_file()
    assert run_command(*batch)[0] == 1  # not retried
    with JobStore(out) as store:
        assert store.job("bad").claims == 1
    assert run_command(*batch, "--retry-failed")[0] == 1
    with JobStore(out) as store:
        assert store.job("bad").claims == 2


def until(running: BatchProcess, **fields: object) -> dict[str, Any]:
    """The next event with these values."""
    while (event := running.next_event(60)) is not None:
        if all(event.get(name) == value for name, value in fields.items()):
            return event
    raise AssertionError(f"it ended without {fields}")


@pytest.fixture
def running(tmp_path: Path) -> Iterator[Callable[..., BatchProcess]]:
    """Starts batches in subprocesses, which are killed afterwards."""
    started: list[BatchProcess] = []
    with (tmp_path / "errors").open("w") as errors:

        def start(*arguments: object) -> BatchProcess:
            started.append(BatchProcess([str(each) for each in arguments], errors))
            return started[-1]

        yield start
        for each in started:
            each.popen.kill()
            each.popen.wait()


def append(path: Path, **row: object) -> None:
    with path.open("a") as file:
        file.write(json.dumps(row) + "\n")


def test_watched_batch_takes_new_rows_and_is_cancelled_and_stopped(
    run_command: Batch, running: Callable[..., BatchProcess], model: str, tmp_path: Path
) -> None:
    """Two replicas: one renders until it is cancelled, while rows are added."""
    shots, out = tmp_path / "shots.jsonl", tmp_path / "out"
    arguments = (shots, "-o", out, "--model", model, "--watch", "--replicas", 2)
    append(shots, id="endless", prompt="a", num_inference_steps=10_000)
    append(shots, id="short", prompt="a", num_inference_steps=2)
    batch = running(*arguments)
    until(batch, event="state", id="short", state="done")
    append(shots, id="added", prompt="a", num_inference_steps=2)
    until(batch, event="state", id="added", state="done")
    append(shots, id="bad", prompt="a", num_frames=4)
    assert "line 4: num_frames=4 must be" in until(batch, event="note")["text"]
    assert run_command("jobs", "cancel", out, "endless", "short")[1].splitlines() == [
        "endless is cancelled",
        "short has already ended",
    ]
    until(batch, event="state", id="endless", state="cancelled")
    shots.write_text("".join(shots.read_text().splitlines(keepends=True)[:-1]))
    append(shots, id="last", prompt="a", num_inference_steps=10_000)
    until(batch, event="progress", id="last", phase="denoising", done=30)
    batch.popen.send_signal(signal.SIGTERM)
    batch.popen.wait(timeout=30)
    assert batch.popen.returncode == 130
    with JobStore(out) as store:
        states = {job.id: job.state for job in store.jobs()}
        last = store.job("last")
    assert states == {"endless": "cancelled", "short": "done", "added": "done", "last": "queued"}
    assert last.faults == 0
    assert [path.name for path in (out / ".longtake" / "snapshots").iterdir()]  # to resume from
    assert json.loads((out / "report.json").read_text())["counts"]["queued"] == 1
    code, stdout, _ = run_command("jobs", "retry", out, "endless", "short")
    assert (code, stdout.splitlines()[1]) == (0, "short did not fail")


def test_two_batches_render_each_shot_once(
    running: Callable[..., BatchProcess], model: str, tmp_path: Path
) -> None:
    shots, out = tmp_path / "shots.txt", tmp_path / "out"
    shots.write_text("a cat\na dog\na cat walks\na dog walks\na cat runs\na dog runs\n")
    arguments = (shots, "-o", out, "--model", model, "--num-inference-steps", 30)
    both = [running(*arguments), running(*arguments)]
    rendered = [
        event["id"]
        for each in both
        for event in each.remaining_events()
        if event["event"] == "state" and event["state"] == "done"
    ]
    assert len(rendered) == len(set(rendered)) == 6
    with JobStore(out) as store:
        assert {(job.state, job.claims) for job in store.jobs()} == {("done", 1)}
    assert len(list(out.glob("*.mp4"))) == 6


def test_a_thousand_rows_are_checked_and_queued_in_two_seconds(model: str, tmp_path: Path) -> None:
    """CPU seconds beyond those of a batch of one row."""
    seconds = []
    for count in (1, 1000):
        shots, out = tmp_path / f"{count}.jsonl", tmp_path / f"out-{count}"
        shots.write_text(
            "".join(
                json.dumps({"prompt": f"shot {n}", "seed": n, "num_frames": 1 + 4 * (n % 8)}) + "\n"
                for n in range(count)
            )
        )
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        arguments = [*LONGTAKE, "batch", str(shots), "-o", str(out), "--model", model, "--json"]
        with subprocess.Popen(
            arguments, stdout=subprocess.PIPE, text=True, env=environment
        ) as process:
            assert process.stdout is not None
            assert json.loads(process.stdout.readline())["text"] == f"{count} shots: {count} new"
            used = psutil.Process(process.pid).cpu_times()
            process.kill()
        seconds.append(used.user + used.system)
    assert seconds[1] - seconds[0] < 2
