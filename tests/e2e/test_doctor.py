"""longtake doctor, and the exchange between its ranks."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import psutil
import pytest

from longtake.cli import main as cli
from longtake.engine.tools import doctor
from longtake.engine.tools import trial as on_ranks
from longtake.engine.tools.doctor import CHECKS, trial
from longtake.errors import RankError
from longtake.parallel import KERNELS
from tests.processes import still_running

pytestmark = pytest.mark.usefixtures("new_ranks")

COMMAND = [sys.executable, "-m", "longtake", "doctor"]


def ranks_of(pid: int) -> list[psutil.Process]:
    """Wait until a process has started both ranks."""
    deadline = time.monotonic() + 60
    while len(ranks := running_ranks(pid)) < 2:
        assert time.monotonic() < deadline, "no ranks were started"
        time.sleep(0.02)
    return ranks


def running_ranks(pid: int) -> list[psutil.Process]:
    """The ranks that are children of a process."""
    found = []
    for child in psutil.Process(pid).children():
        with contextlib.suppress(psutil.ZombieProcess):  # it has just ended
            if "longtake.engine.tools.trial_rank" in child.cmdline():
                found.append(child)
    return found


def test_failure_does_not_stop_other_checks(tmp_path: Path) -> None:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        port = listener.getsockname()[1]
        options = ["--folder", str(tmp_path / "nothing"), "--port", str(port), "--device", "cpu"]
        ran = subprocess.run(
            [*COMMAND, *options, "--json"], capture_output=True, text=True, check=False, timeout=120
        )
    (line,) = ran.stdout.splitlines()
    report = json.loads(line)
    assert (ran.returncode, report["status"], ran.stderr) == (3, "failure", "")
    findings = {finding["name"]: finding for finding in report["findings"]}
    failures = [name for name, finding in findings.items() if finding["status"] == "failure"]
    assert failures == ["folder", "port"]
    assert findings["folder"]["message"] == f"there is no folder {tmp_path}/nothing"
    assert findings["port"]["message"] == (
        f"port {port} cannot be used on localhost: Address already in use"
    )
    assert findings["port"]["way_out"].startswith("name another with --port")
    assert findings["exchange gloo"]["status"] == "ok"
    assert findings["exchange gloo"]["message"].startswith("attention on 2 ranks in ")
    assert findings["encoder .mp4"]["message"] == "8 frames written, 8 read back"


def test_exit_code_is_the_worst_finding(
    tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With this machine's findings, except for the exchange."""
    checks = [check for check in CHECKS if not check.name.startswith("exchange")]
    monkeypatch.setattr(doctor, "CHECKS", checks)
    code = cli.main(["doctor", "--device", "cpu", "--folder", str(tmp_path)])
    lines = capsys.readouterr().out.splitlines()
    statuses = [line.split()[0] for line in lines if not line.startswith(" ")]
    assert set(statuses) <= {"ok", "warning"}  # this machine may be short of memory or disk
    assert code == int("warning" in statuses)
    assert len(statuses) > len(KERNELS) and "ok" in statuses
    assert list(tmp_path.iterdir()) == []


def test_ctrl_c_ends_the_ranks() -> None:
    with subprocess.Popen(COMMAND, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        ranks = ranks_of(process.pid)
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=20)
    assert process.returncode == 130
    assert err.decode().splitlines()[-1] == "longtake: stopped; nothing was written"
    assert not still_running(ranks, timeout=3)


def test_deadline_ends_hanging_ranks() -> None:
    """One rank is suspended; the other waits for it."""
    found: list[psutil.Process] = []

    def suspend() -> None:
        found.extend(ranks_of(os.getpid()))
        found[1].suspend()

    suspending = threading.Thread(target=suspend)
    suspending.start()
    start = time.monotonic()
    with pytest.raises(RankError, match=r"2 ranks were not done in 2\.5 s, and were ended"):
        trial.exchange("cpu", deadline_s=2.5)
    assert time.monotonic() - start < 8
    suspending.join()
    assert not still_running(found, timeout=1)


def test_rank_that_dies_is_reported(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """It dies without a report."""
    (tmp_path / "torch.py").write_text("raise ImportError('half installed')")
    variables, broken = on_ranks._variables, {"PYTHONPATH": str(tmp_path)}
    monkeypatch.setattr(
        on_ranks, "_variables", lambda *arguments: {**variables(*arguments), **broken}
    )
    message = r"rank \d died \(exit code 1\); its last line: ImportError: half installed"
    with pytest.raises(RankError, match=message):
        trial.exchange("cpu", deadline_s=60)
    assert not running_ranks(os.getpid())


def test_rank_that_fails_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    variables = on_ranks._variables
    monkeypatch.setattr(
        on_ranks,
        "_variables",
        lambda *arguments: {**variables(*arguments), "GLOO_SOCKET_IFNAME": "nowhere"},
    )
    with pytest.raises(RankError, match=r"rank \d failed: .*[Uu]nable to find .* nowhere"):
        trial.exchange("cpu", deadline_s=60)
