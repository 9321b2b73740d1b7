"""longtake batch --dry-run: errors and cost."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from longtake.cli import main as cli


def dry_run(folder: Path, content: str) -> int:
    """Run longtake batch --dry-run on a file; return the exit code."""
    file = folder / "a.yaml"
    file.write_text(content)
    return cli.main(["batch", str(file), "-o", str(folder / "out"), "--dry-run"])


def test_a_dry_run_of_5000_shots_is_cheap(tmp_path: Path) -> None:
    """1 s on an idle core, 70 MB, and no torch."""
    rows = "".join(f"  - {{id: x{n}, prompt: a red circle, seed: {n}}}\n" for n in range(5000))
    (tmp_path / "a.yaml").write_text(f"shots:\n{rows}")
    program = (
        "import resource, sys; from longtake.cli import main as cli\n"
        "code = cli.main(sys.argv[1:])\n"
        "used = resource.getrusage(resource.RUSAGE_SELF)\n"
        "(peak,) = [line.split()[1] for line in open('/proc/self/status') if 'VmHWM' in line]\n"
        "assert 'torch' not in sys.modules\n"
        "print(code, used.ru_utime, peak)"
    )
    command = [sys.executable, "-c", program, "batch", "a.yaml", "-o", "out", "--dry-run"]
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": ""}
    ran = subprocess.run(
        [*command, "--device", "cpu"],
        capture_output=True,
        text=True,
        check=True,
        cwd=tmp_path,
        env=environment,
    )
    *lines, last = ran.stdout.splitlines()
    code, seconds, kibibytes = last.split()
    assert code == "0"
    assert lines[0].split() == ["id", "output", "size", "frames", "about"]
    assert lines[5000].startswith("x4999")
    assert float(seconds) < 8
    assert int(kibibytes) < 150_000


def test_errors_name_the_line_of_the_shot(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    content = (
        "defaults:\n  resolution: 64p\n  fps: fast\nshots:\n  - {id: off, prompt: 12:30}\n"
        "  - prompt: b\n    heigth: 5\n  - prompt: c\n    size: 40x64\n"
    )
    assert dry_run(tmp_path, content) == 2
    err = capsys.readouterr().err
    assert "  line 3: fps='fast' must be a number" in err
    assert "heigth is not an option: perhaps you meant height" in err
    content = content.replace("  fps: fast\n", "").replace("heigth: 5", "seconds: 1")
    assert dry_run(tmp_path, content) == 2
    assert "line 8: width=40 must be a multiple of 16" in capsys.readouterr().err
    content = content.replace("40x64", "48x64")
    assert dry_run(tmp_path, content) == 0
    rows = [line.split()[:4] for line in capsys.readouterr().out.splitlines()]
    assert rows[1] == ["off", "off.mp4", "64x64", "17"]
    assert [rows[2][2:], rows[3][2]] == [["64x64", "9"], "48x64"]
