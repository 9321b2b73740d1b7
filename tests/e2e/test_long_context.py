"""The commands of examples/long_context/README.md print what it says."""

from __future__ import annotations

import importlib
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
README = ROOT / "examples/long_context/README.md"


def consoles() -> list[tuple[list[str], list[str]]]:
    """The commands of the README, each with the lines that it prints."""
    found = []
    for body in re.findall(r"^```console\n\$ (.*?)^```$", README.read_text(), re.M | re.S):
        command, _, printed = body.replace("\\\n", "").partition("\n")
        found.append((shlex.split(command), printed.splitlines()))
    return found


def split_numbers(line: str) -> tuple[str, list[float]]:
    """A line's words, and its numbers but for the speed."""
    line = re.sub(r"\s*[\d,]+ tokens/s", " tokens/s", line)
    return re.sub(r"\s*\d+\.\d+", " #", line), [*map(float, re.findall(r"\d+\.\d+", line))]


def run(words: list[str], capsys: pytest.CaptureFixture[str]) -> list[str]:
    """Run a command in this folder; returns the lines that it prints."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    if words[0] == "torchrun":
        command = [sys.executable, "-m", "torch.distributed.run", *words[1:]]
        ran = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        assert ran.returncode == 0, ran.stderr
        return ran.stdout.splitlines()
    assert words[:2] == ["python", "-m"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", words[2:])
        assert importlib.import_module(words[2]).main() in (0, None)
    return capsys.readouterr().out.splitlines()


def test_commands_of_the_readme_print_what_it_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert len(consoles()) == 4
    for command, expected in consoles():
        assert len(expected) > 0
        for line, expected_line in zip(run(command, capsys), expected, strict=True):
            words, numbers = split_numbers(line)
            expected_words, expected_numbers = split_numbers(expected_line)
            assert words == expected_words
            assert numbers == pytest.approx(expected_numbers, abs=1e-3)
    checkpoints = {path.name for path in (tmp_path / "run").iterdir()}
    assert checkpoints == {"step-5", "step-8"}
