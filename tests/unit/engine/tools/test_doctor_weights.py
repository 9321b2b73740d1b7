"""The doctor's checks of what weights pass through, on simulated machines."""

from __future__ import annotations

import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest
import torch

from longtake.configs.commands.tools import DoctorConfig
from longtake.configs.engine import EngineConfig
from longtake.engine.tools.doctor import CheckContext, Finding, weights
from tests.unit.engine.tools.test_doctor import findings_of, machine, only_finding

GIB = 2**30


def context(model: str = "demo") -> CheckContext:
    return CheckContext(DoctorConfig(), EngineConfig(model=model))


@pytest.fixture
def gpus(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """A machine with two GPUs, whose copies are not made."""
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(weights, "topology", machine)
    monkeypatch.setattr(torch, "empty", lambda *size, **options: "pinned")
    return monkeypatch


def test_host_memory_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(weights, "COPIED_BYTES", 2**20)
    finding = only_finding(weights.host)
    assert finding.status == "ok"
    assert " GiB, the " in finding.message and finding.message.endswith(" GB/s")


@pytest.mark.parametrize(("used", "status"), [(0, "ok"), (2 * GIB, "warning")])
def test_swap(monkeypatch: pytest.MonkeyPatch, used: int, status: str) -> None:
    memory = SimpleNamespace(used=used, total=8 * GIB)
    monkeypatch.setattr(psutil, "swap_memory", lambda: memory)
    finding = only_finding(weights.swap)
    assert finding.status == status
    assert finding.message.startswith(f"{used / GIB:.1f} GiB of 8.0 GiB in use")


def test_without_a_gpu_nothing_is_pinned() -> None:
    cpu = CheckContext(DoctorConfig(), EngineConfig(device="cpu"))
    assert findings_of(weights.pinned, cpu) == findings_of(weights.pcie, cpu) == []


def test_pinned_memory(gpus: pytest.MonkeyPatch) -> None:
    finding = only_finding(weights.pinned)
    assert (finding.status, "works; RLIMIT_MEMLOCK is" in finding.message) == ("ok", True)
    gpus.setattr("platform.release", lambda: "5.15.167.4-microsoft-standard-WSL2")
    gpus.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(total=16 * GIB))
    finding = only_finding(weights.pinned)
    assert finding.status == "warning" and "about 8.0 GiB" in finding.message

    def refuse(*size: Any, **options: Any) -> None:
        raise RuntimeError("CUDA error: out of memory\nand more")

    gpus.setattr(torch, "empty", refuse)
    finding = only_finding(weights.pinned)
    assert finding.status == "warning"
    assert finding.message.endswith("cannot be page-locked: CUDA error: out of memory")


@pytest.mark.parametrize(("gb_per_s", "status"), [(25.0, "ok"), (3.2, "warning")])
def test_pcie(gpus: pytest.MonkeyPatch, gb_per_s: float, status: str) -> None:
    gpus.setattr(weights, "_copy_rate", lambda pinned, index: gb_per_s * 1e9)
    findings = findings_of(weights.pcie)
    assert [finding.status for finding in findings] == [status] * 2
    assert findings[1].message == (
        f"GPU 1 receives {gb_per_s} GB/s from pinned memory, its PCIe lanes carry 31.5"
    )


def test_the_disk_is_read_past_the_page_cache(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The largest file, at most as much as is allowed."""
    (tmp_path / "vae").mkdir()
    (tmp_path / "vae" / "small.safetensors").write_bytes(bytes(100))
    (tmp_path / "large.safetensors").write_bytes(bytes(3 * 2**22 + 100))
    opened: list[int] = []
    real = os.open

    def record(path: Any, flags: int) -> int:
        assert Path(path).name == "large.safetensors" and flags & os.O_DIRECT
        opened.append(flags)
        return real(path, flags & ~os.O_DIRECT)  # this file system may not have it

    monkeypatch.setattr(os, "open", record)
    monkeypatch.setattr(weights, "SLOW_DISK_BYTES_PER_S", 0.0)
    finding = only_finding(weights.disk, context(str(tmp_path)))
    assert finding.status == "ok" and finding.message.endswith(f"from {tmp_path}, of 12 MiB")
    monkeypatch.setattr(weights, "READ_BYTES", 2**22)
    monkeypatch.setattr(weights, "JUDGED_BYTES", 2**22)
    monkeypatch.setattr(weights, "SLOW_DISK_BYTES_PER_S", 1e15)
    finding = only_finding(weights.disk, context(str(tmp_path)))
    assert finding.status == "warning" and finding.message.endswith(", of 4 MiB")
    assert len(opened) == 2


def test_a_disk_that_is_not_read(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    finding = only_finding(weights.disk, context("owner/name"))
    assert finding == Finding("disk", "ok", "not read: owner/name is no file or folder of weights")
    (tmp_path / "a.safetensors").write_bytes(bytes(10))

    def refuse(path: Any, flags: int) -> int:
        raise OSError(22, "Invalid argument")

    monkeypatch.setattr(os, "open", refuse)
    finding = only_finding(weights.disk, context(str(tmp_path)))
    assert finding.status == "ok" and "cannot be read past the page cache" in finding.message
