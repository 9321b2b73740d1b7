"""The doctor's checks, on simulated machines where this one lacks hardware."""

from __future__ import annotations

import importlib.metadata
import json
import os
import shutil
import socket
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from itertools import combinations
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from huggingface_hub import constants

from longtake.cli import main as cli
from longtake.configs.commands.tools import DoctorConfig
from longtake.configs.engine import EngineConfig
from longtake.engine.media import frame_writers
from longtake.engine.planning.topology import Gpu, Link, Topology
from longtake.engine.tools import doctor
from longtake.engine.tools.doctor import (
    CHECKS,
    Check,
    CheckContext,
    Finding,
    examine,
    gpu,
    host,
    trial,
    worst,
)
from longtake.errors import RankError
from longtake.parallel import KERNELS, Kernel
from longtake.parallel.kernels import table as kernels_module
from longtake.parallel.kernels.torch_kernels import cpu_flash
from longtake.pipelines.codec import memory


def make_context(
    folder: str = ".", port: int = 0, devices: int = 1, device: str = "auto"
) -> CheckContext:
    engine = EngineConfig.model_validate({"devices": devices, "device": device})
    return CheckContext(DoctorConfig(folder=folder, port=port), engine)


def findings_of(
    check: Callable[[CheckContext], Iterator[Finding]], of: CheckContext | None = None
) -> list[Finding]:
    """A check's findings; each one that is not "ok" has a way out."""
    findings = list(check(of or make_context()))
    for finding in findings:
        assert bool(finding.way_out) == (finding.status != "ok"), finding
        assert "\n" not in finding.message
    return findings


def only_finding(
    check: Callable[[CheckContext], Iterator[Finding]], of: CheckContext | None = None
) -> Finding:
    (finding,) = findings_of(check, of)
    return finding


@pytest.fixture
def two_gpus(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """A machine on which torch finds two GPUs, which are not tested."""
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(gpu, "_gpu", lambda index: Finding(f"gpu {index}", "ok", "there"))
    return monkeypatch


def machine(count: int = 2, pcie_gb_per_s: float = 31.5, **link: Any) -> Topology:
    each = Gpu(0, "Model", "GPU-x", 2**36, 2**36, (9, 0), pcie_gb_per_s * 1e9)
    return Topology(
        gpus=tuple(replace(each, index=index) for index in range(count)),
        links={
            pair: Link(**{"kind": "host-bridge", **link}) for pair in combinations(range(count), 2)
        },
        driver="580.1",
        cuda="13.0",
    )


def test_the_worst_status_counts() -> None:
    findings = [Finding("a", "ok", ""), Finding("b", "failure", ""), Finding("c", "warning", "")]
    assert worst(findings) == "failure"
    assert worst(findings[::2]) == "warning"
    assert worst(findings[:1]) == worst([]) == "ok"


def test_a_check_that_raises_is_a_failure_and_the_next_one_runs(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def breaks(context: CheckContext) -> Iterator[Finding]:
        yield Finding("first", "ok", "half of it")
        raise OSError("of several\nlines")

    def loses(context: CheckContext) -> Iterator[Finding]:
        raise RankError("rank 1 died")
        yield

    checks = (Check("a", breaks, "x"), Check("b", loses, "y"), CHECKS[0])
    monkeypatch.setattr(doctor, "CHECKS", checks)
    findings = list(examine(make_context()))
    assert findings[:3] == [
        Finding("first", "ok", "half of it"),
        Finding("a", "failure", "OSError: of several lines", "x"),
        Finding("b", "failure", "rank 1 died", "y"),
    ]
    assert [finding.name for finding in findings[3:]] == ["python"]


def test_ctrl_c_in_a_check_is_not_a_finding(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(context: CheckContext) -> Iterator[Finding]:
        raise KeyboardInterrupt
        yield

    monkeypatch.setattr(doctor, "CHECKS", (Check("a", interrupted, ""),))
    with pytest.raises(KeyboardInterrupt):
        list(examine(make_context()))


def test_every_check_has_a_way_out() -> None:
    assert all(check.way_out for check in CHECKS)
    assert len({check.name for check in CHECKS}) == len(CHECKS)


@pytest.mark.parametrize(
    ("statuses", "arguments", "code", "printed"),
    [
        (["ok", "warning"], [], 1, "ok       one     is so\nwarning  two     is so\n  -> do so\n"),
        (["ok", "failure"], ["--quiet"], 3, "failure  two     is so\n  -> do so\n"),
        (["ok", "ok"], ["--quiet"], 0, ""),
    ],
)
def test_output_of_the_command(
    monkeypatch: pytest.MonkeyPatch,
    capsys: Any,
    statuses: list[Any],
    arguments: list[str],
    code: int,
    printed: str,
) -> None:
    findings = [
        Finding(name, status, "is so", "" if status == "ok" else "do so")
        for name, status in zip(["one", "two"], statuses, strict=True)
    ]
    monkeypatch.setattr(doctor, "CHECKS", (Check("", lambda context: iter(findings), ""),))
    assert cli.main(["doctor", *arguments]) == code
    out, err = capsys.readouterr()
    assert "".join(out.split(" ")) == "".join(printed.split(" "))
    assert err == ""
    assert cli.main(["doctor", *arguments, "--json"]) == code
    report = json.loads(capsys.readouterr().out)
    assert [each["status"] for each in report["findings"]] == statuses
    assert report["status"] == worst(findings)
    assert report["findings"][0] == {
        "name": "one",
        "status": "ok",
        "message": "is so",
        "way_out": "",
    }


def test_long_lines_are_not_wrapped_without_a_terminal(
    monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    finding = Finding("one", "warning", "word [red]" * 50, "way " * 50)
    monkeypatch.setattr(doctor, "CHECKS", (Check("", lambda context: iter([finding]), ""),))
    cli.main(["doctor"])
    first, second = capsys.readouterr().out.splitlines()
    assert first.endswith("word [red]" * 50)
    assert second.strip() == "-> " + ("way " * 50).strip()


@pytest.mark.parametrize("option", [["--port", "65536"], ["--devices", "0"], ["--folder", ""]])
def test_bad_options_are_refused(capsys: Any, option: list[str]) -> None:
    assert cli.main(["doctor", *option]) == 2
    err = capsys.readouterr().err
    assert err.startswith(f"longtake: {option[0][2:]}='{option[1]}' ") and " must " in err


def test_python(monkeypatch: pytest.MonkeyPatch) -> None:
    assert only_finding(host.python).status == "ok"
    monkeypatch.setattr(host, "OLDEST_PYTHON", (4, 0))
    assert only_finding(host.python).status == "failure"


def test_libraries(monkeypatch: pytest.MonkeyPatch) -> None:
    finding = only_finding(host.libraries)
    assert finding.status == "ok"
    assert finding.message.startswith(f"torch {importlib.metadata.version('torch')}, diffusers ")
    wanted = ["torch>=99.1", "nowhere-to-be-had>=1", "numpy>=1.26", 'ruff>=99; extra == "dev"']
    monkeypatch.setattr(importlib.metadata, "requires", lambda name: wanted)
    finding = only_finding(host.libraries)
    assert finding.status == "failure"
    assert finding.message.endswith(" is older than 99.1; nowhere-to-be-had is not installed")
    assert finding.way_out == "pip install 'torch>=99.1' 'nowhere-to-be-had>=1'"


@pytest.mark.parametrize(
    ("version", "numbers"), [("2.13.0+cu130", (2, 13, 0)), ("2.9.1rc2", (2, 9, 1)), ("7", (7,))]
)
def test_versions_are_numbers(version: str, numbers: tuple[int, ...]) -> None:
    assert host._numbers(version) == numbers


def test_torch(two_gpus: pytest.MonkeyPatch) -> None:
    two_gpus.setattr(torch.distributed, "is_nccl_available", lambda: False)
    assert "several ranks need nccl" in only_finding(gpu.torch_build).message
    assert only_finding(gpu.torch_build, make_context(device="cpu")).status == "ok"
    two_gpus.setattr(torch.distributed, "is_gloo_available", lambda: False)
    assert only_finding(gpu.torch_build, make_context(device="cpu")).status == "failure"


@pytest.mark.parametrize(
    ("driver", "built_for", "status", "words"),
    [
        (Topology(reason="there is no driver"), None, "ok", "no driver: renders on the CPU"),
        (Topology(reason="there is no driver"), "12.8", "ok", "no driver: renders on the CPU"),
        (machine(), None, "failure", "driver 580.1 is installed, but torch"),
        (machine(), "12.8", "ok", "driver 580.1 supports CUDA 13.0, torch is built for 12.8"),
        (Topology(reason="it is silent", broken=True), "12.8", "failure", "it is silent"),
    ],
)
def test_the_driver(
    monkeypatch: pytest.MonkeyPatch,
    driver: Topology,
    built_for: str | None,
    status: str,
    words: str,
) -> None:
    monkeypatch.setattr(gpu, "topology", lambda: driver)
    monkeypatch.setattr(torch.version, "cuda", built_for)
    monkeypatch.setattr(torch.cuda, "init", lambda: None)
    finding = only_finding(gpu.driver)
    assert (finding.status, words in finding.message) == (status, True)
    assert only_finding(gpu.driver, make_context(device="cpu")).status == "ok"
    insisting = only_finding(gpu.driver, make_context(device="cuda"))
    assert (insisting.status == "ok") == bool(driver.gpus and built_for)


def test_a_driver_that_torch_cannot_use(monkeypatch: pytest.MonkeyPatch) -> None:
    def init() -> None:
        raise RuntimeError("The NVIDIA driver on your system is too old")

    monkeypatch.setattr(gpu, "topology", machine)
    monkeypatch.setattr(torch.version, "cuda", "12.8")
    monkeypatch.setattr(torch.cuda, "init", init)
    monkeypatch.setattr(doctor, "CHECKS", [check for check in CHECKS if check.name == "cuda"])
    (finding,) = examine(make_context())
    assert finding.status == "failure"
    assert "too old" in finding.message and "update the driver" in finding.way_out


def test_more_devices_than_gpus(two_gpus: pytest.MonkeyPatch) -> None:
    *gpus, finding = findings_of(gpu.enough_devices, make_context(devices=2))
    assert [each.name for each in gpus] == ["gpu 0", "gpu 1"]
    assert finding.status == "ok"
    for device in ("auto", "cuda"):
        finding = findings_of(gpu.enough_devices, make_context(devices=3, device=device))[-1]
        assert (finding.status, finding.message) == ("failure", "devices=3 with 2 GPUs here")
        assert finding.way_out == "--devices 2, or --device cpu"
    two_gpus.setattr(torch.cuda, "device_count", lambda: 0)
    finding = only_finding(gpu.enough_devices, make_context(device="cuda"))
    assert (finding.status, finding.way_out) == ("failure", "--device cpu")


def test_ranks_on_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0, 1, 2})
    assert only_finding(gpu.enough_devices, make_context(devices=3)).status == "ok"
    assert only_finding(gpu.enough_devices, make_context(devices=4)).status == "warning"


@pytest.mark.parametrize(
    ("free", "computes", "status"),
    [(60, 64.0**3, "ok"), (30, 64.0**3, "warning"), (60, 1.0, "failure"), (60, None, "failure")],
)
def test_on_gpu(
    monkeypatch: pytest.MonkeyPatch, free: int, computes: float | None, status: str
) -> None:
    properties = SimpleNamespace(name="H100", total_memory=80 * 2**30, major=9, minor=0)

    def ones(*shape: int, device: str) -> torch.Tensor:
        if computes is None:
            raise RuntimeError("no kernel image is available")
        return torch.full((64, 64), (computes / 64**3) ** 0.5)

    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda index: properties)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda index: (free * 2**30, 80 * 2**30))
    monkeypatch.setattr(torch, "ones", ones)
    finding = gpu._gpu(1)
    assert finding.status == status
    assert finding.message.startswith("H100, 80.0 GiB, capability 9.0")
    assert bool(finding.way_out) == (status != "ok")


@pytest.mark.parametrize(
    ("driver", "warnings"),
    [
        (machine(kind="nvlink", num_nvlinks=18, peer_access=True, pcie_gb_per_s=2), []),
        (machine(4, kind="host-bridge", peer_access=True), []),
        (machine(kind="socket", peer_access=None), []),
        (machine(kind="socket", peer_access=False), ["GPUs 0-1 cannot access"]),
        (machine(kind="pcie-switch", pcie_gb_per_s=3.9), ["PCIe is slower than 12 GB/s"]),
        (machine(kind="socket", peer_access=False, pcie_gb_per_s=3.9), ["GPUs 0-1", "PCIe"]),
    ],
)
def test_links(two_gpus: pytest.MonkeyPatch, driver: Topology, warnings: list[str]) -> None:
    two_gpus.setattr(gpu, "topology", lambda: driver)
    first, *others = findings_of(gpu.links)
    assert first.message.startswith(f"of {len(driver.links)} pairs of GPUs {len(driver.links)} ")
    assert [finding.status for finding in others] == ["warning"] * len(warnings)
    for finding, words in zip(others, warnings, strict=True):
        assert finding.message.startswith(words)
    assert findings_of(gpu.links, make_context(device="cpu")) == []


def test_kernels() -> None:
    findings = {
        finding.name: finding for finding in findings_of(gpu.kernels, make_context(device="cpu"))
    }
    assert list(findings) == [f"kernel {kernel.name}" for kernel in KERNELS]
    assert worst(findings.values()) == "ok"
    assert findings["kernel cpu-flash"].message == "can"
    assert findings["kernel sdpa"].message == "can, but not in a ring or for training"
    assert findings["kernel xformers"].message == "cannot: runs on cuda only"


def test_kernels_that_fail_or_are_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    def wrong(*arguments: Any) -> Any:
        out, lse = cpu_flash(*arguments)
        return out, lse + 1e-3

    def raises(*arguments: Any) -> Any:
        raise LookupError("no such\nsymbol")

    wrong_one, raising = (
        Kernel(name, run, None, (torch.float32,))
        for name, run in (("wrong", wrong), ("raising", raises))
    )
    monkeypatch.setattr(kernels_module, "KERNELS", (wrong_one, raising, KERNELS[-1]))
    one, other, last = findings_of(gpu.kernels, make_context(device="cpu"))
    assert (one.status, one.message) == ("warning", "should, but is wrong by 1e-03, not 1e-05")
    assert (other.status, other.message) == ("warning", "should, but fails: no such symbol")
    assert (last.status, one.way_out) == ("ok", "--attention-kernel sdpa")
    monkeypatch.setattr(kernels_module, "KERNELS", (wrong_one, raising, KERNELS[0]))
    findings = findings_of(gpu.kernels, make_context(device="cpu"))
    assert [finding.status for finding in findings] == ["warning", "warning", "ok", "failure"]


def test_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "free_bytes", lambda device: 3 * 2**30)
    assert only_finding(host.memory, make_context(devices=3)).status == "ok"
    finding = only_finding(host.memory, make_context(devices=4))
    assert finding.status == "warning"
    assert finding.message == "3.0 GiB free, and devices=4 needs 4.0 GiB at least"


def test_shared_memory(two_gpus: pytest.MonkeyPatch, tmp_path: Path) -> None:
    two_gpus.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(total=64 * 2**20))
    two_gpus.setattr(host, "SHARED_MEMORY", tmp_path)
    assert only_finding(host.shared_memory).status == "warning"
    assert only_finding(host.shared_memory, make_context(device="cpu")).status == "ok"
    two_gpus.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(total=2**30))
    assert only_finding(host.shared_memory).status == "ok"
    two_gpus.setattr(host, "SHARED_MEMORY", tmp_path / "nothing")
    assert only_finding(host.shared_memory).status == "warning"


def test_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    here = make_context(str(tmp_path))
    assert only_finding(host.folder, here).status == "ok"
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "file").touch()
    for name, words in (("nothing", "there is no folder"), ("file", "is no folder")):
        finding = only_finding(host.folder, make_context(str(tmp_path / name)))
        assert (finding.status, words in finding.message) == ("failure", True)
    finding = only_finding(host.folder, make_context("/proc"))  # not even root can write there
    assert finding.status == "failure"
    assert finding.message.startswith("/proc cannot be written to: ")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert str(tmp_path) in only_finding(host.folder, make_context("~")).message
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=4 * 2**30))
    finding = only_finding(host.folder, here)
    assert finding.status == "warning"
    assert finding.message.endswith("4.0 GiB free, less than 5.0 GiB")


def test_hub_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "to" / "come"))
    assert only_finding(host.hub_cache).status == "ok"
    assert list(tmp_path.iterdir()) == []
    monkeypatch.setattr(constants, "HF_HUB_CACHE", "/proc/hub")
    assert only_finding(host.hub_cache).status == "warning"


@pytest.mark.parametrize("suffix", [".mp4", ".webm", ".gif"])
def test_encoders(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, suffix: str) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    assert only_finding(partial(host.encoder, suffix)).message == "8 frames written, 8 read back"
    writer: Any = frame_writers.WRITERS[suffix]

    class Lossy(writer):  # type: ignore[misc]
        def write(self, index: int, frame: Any) -> None:
            if index != 3:
                super().write(index, frame)

    monkeypatch.setitem(frame_writers.WRITERS, suffix, Lossy)
    finding = only_finding(partial(host.encoder, suffix))
    assert (finding.status, finding.message) == ("failure", "8 frames written, 7 read back")
    assert list(tmp_path.iterdir()) == []


def test_a_missing_encoder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(frame_writers._CODECS, ".mp4", "no-such-codec")
    monkeypatch.setattr(doctor, "CHECKS", [c for c in CHECKS if c.name == "encoder .mp4"])
    (finding,) = examine(make_context())
    assert finding.status == "failure"
    assert "no-such-codec" in finding.message and ".npy" in finding.way_out


def test_port() -> None:
    finding = only_finding(host.port)
    assert finding.status == "ok"
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        number = taken.getsockname()[1]
        finding = only_finding(host.port, make_context(port=number))
        assert finding.status == "failure"
        assert f"port {number} cannot be used on localhost: Address already" in finding.message
    assert (
        only_finding(host.port, make_context(port=number)).message
        == f"{number} is free on localhost"
    )


def test_exchange(two_gpus: pytest.MonkeyPatch) -> None:
    differences = {"cpu": 1e-4, "cuda": 1e-3}
    tried: list[tuple[str, float]] = []

    def exchange(device_type: str, deadline_s: float) -> float:
        tried.append((device_type, deadline_s))
        return differences[device_type]

    two_gpus.setattr(trial, "exchange", exchange)
    assert only_finding(partial(gpu.exchange, "gloo")).message.endswith("more than 1e-05")
    assert only_finding(partial(gpu.exchange, "nccl")).status == "ok"
    assert tried == [("cpu", 60.0), ("cuda", 60.0)]
    differences["cpu"] = float("nan")
    assert only_finding(partial(gpu.exchange, "gloo")).status == "failure"
    assert findings_of(partial(gpu.exchange, "nccl"), make_context(device="cpu")) == []
