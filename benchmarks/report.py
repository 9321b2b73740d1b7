"""The command line and the result file that the benchmarks share."""

from __future__ import annotations

import argparse
import os
import platform
import re
from datetime import datetime
from importlib import metadata
from pathlib import Path

import torch

_RESULTS = Path(__file__).parent / "results"
_PEERS = Path(__file__).parent / "peers.txt"


def benchmark_parser(doc: str | None, *, rounds: int) -> argparse.ArgumentParser:
    """A parser with the options that all benchmarks have.

    Args:
        doc: Docstring of the benchmark; its first line becomes the description.
        rounds: Default number of rounds.
    """
    parser = argparse.ArgumentParser(description=doc.split("\n")[0] if doc else None)
    parser.add_argument("--rounds", type=int, default=rounds)
    parser.add_argument("--results", type=Path, default=_RESULTS, help="folder of the result file")
    return parser


class Report:
    """A dated Markdown file of results, whose paragraphs are also printed.

    Args:
        title: Heading of the file.
        subject: Subject of the benchmark, used in the file name.
        device_type: "cuda" or "cpu".
        folder: Folder of the file.
    """

    def __init__(self, title: str, subject: str, device_type: str, folder: Path) -> None:
        started = datetime.now()
        self._path = folder / f"{started:%Y-%m-%d-%H%M}-{subject.replace(' ', '-')}.md"
        self._parts = [f"# {title}, {started:%Y-%m-%d %H:%M}", _environment(device_type)]

    def add(self, *parts: str) -> None:
        """Add paragraphs."""
        self._parts += parts
        print("\n\n".join(parts), flush=True)

    def write(self) -> None:
        """Write the file."""
        self._path.parent.mkdir(parents=True, exist_ok=True)
        self._path.write_text("\n\n".join(self._parts) + "\n")
        print(f"\nwritten to {self._path}")


def _environment(device_type: str) -> str:
    """Hardware and versions, in one paragraph."""
    if device_type == "cuda":
        devices = f"{torch.cuda.device_count()} x {torch.cuda.get_device_name()}"
    else:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        model = next((x.split(":")[1].strip() for x in lines if x.startswith("model name")), "CPU")
        devices = f"{model}, {os.cpu_count()} logical cores, one thread a rank"
    peers = re.findall(r"^([\w-]+)==", _PEERS.read_text(), re.MULTILINE)
    versions = ", ".join(map(_version, ["torch", "longtake", *peers]))
    return f"{devices}; Python {platform.python_version()}; {versions}"


def _version(package: str) -> str:
    try:
        return f"{package} {metadata.version(package)}"
    except metadata.PackageNotFoundError:
        return f"{package} not installed"
