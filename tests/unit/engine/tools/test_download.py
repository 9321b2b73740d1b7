"""Downloads from a stand-in for the hub: what is read, interruptions, damage, refusals."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from collections import namedtuple
from collections.abc import Iterator
from pathlib import Path

import pytest

from longtake.cli import main as cli
from longtake.configs.engine import EngineConfig
from longtake.engine.tools.download import Download
from longtake.engine.tools.model_list import downloaded_state
from longtake.errors import ModelError
from longtake.pipelines import registry
from longtake.pipelines.loading.checkpoint import Checkpoint
from longtake.pipelines.loading.files import hub as hub_module
from longtake.pipelines.runtime.progress import Progress
from tests.hub_stand_in import CHUNK_BYTES, HubStandIn, serve_hub
from tests.unit.pipelines.loading.files.test_hub import REST
from tests.until import until

TRANSFORMER = "transformer/diffusion_pytorch_model.safetensors"
VAE = "vae/diffusion_pytorch_model.safetensors"
UNREAD = ("README.md", "single_file.safetensors", "text_encoder/pytorch_model.bin")


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "cache"


@pytest.fixture
def hub(
    model: str, tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[HubStandIn]:
    files = Path(shutil.copytree(model, tmp_path / "files"))
    for name in UNREAD:
        (files / name).write_text("unread")
    with serve_hub(files, cache, monkeypatch) as served:
        yield served


def plan(vae: Path | None = None) -> Download:
    return Download.plan(EngineConfig(model="some/one", vae=vae))


def run(planned: Download) -> tuple[list[Progress], list[str]]:
    """Download; the progress and the notes."""
    reports: list[Progress] = []
    notes: list[str] = []
    planned.run(reports.append, notes.append)
    return reports, notes


def refused(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """The error line of ``longtake download``."""
    assert cli.main(["download", "--quiet", *arguments]) == 2
    return capsys.readouterr().err.splitlines()[-1]


def test_downloads_what_is_read_and_no_more(hub: HubStandIn, cache: Path) -> None:
    planned = plan()
    assert {file.name for file in planned.missing} == REST
    assert not hub.sent.keys() & REST
    own_vae = plan(vae=hub.files / VAE)  # what stands in for it is not downloaded
    assert {file.name for file in own_vae.missing} == REST - {VAE}
    reports, notes = run(planned)
    assert notes == [] and not hub.sent.keys() & {*UNREAD}
    sizes = {name: (hub.files / name).stat().st_size for name in hub.names()}
    large = {name for name in REST if name.endswith(".safetensors")}
    assert all(hub.sent[name] == sizes[name] for name in large)
    assert planned.num_bytes == sum(sizes[file.name] for file in planned.files)
    assert planned.missing == []
    for phase in ("downloading", "checking"):
        last = [each for each in reports if each.phase == phase][-1]
        assert last.done == last.total > 0
    assert downloaded_state("some/one") == ("downloaded", sum(sizes[name] for name in large))
    assert downloaded_state("some/other") == ("no", 0)
    registry.inspect(Checkpoint.open("some/one"))
    again = plan()
    hub.sent.clear()
    run(again)
    assert hub.sent == {}


def test_interrupted_download_goes_on(hub: HubStandIn, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the files that are missing; those that came are not sent again."""
    planned = plan()
    fetch = hub_module.fetch_file
    fetched: list[str] = []

    def interrupted(repository: str, commit: str, name: str) -> Path:
        if len(fetched) == 3:
            raise KeyboardInterrupt
        fetched.append(name)
        return fetch(repository, commit, name)

    with monkeypatch.context() as patch:
        patch.setattr(hub_module, "fetch_file", interrupted)
        with pytest.raises(KeyboardInterrupt):
            run(planned)
    assert downloaded_state("some/one")[0] in ("in part", "no")
    hub.sent.clear()
    again = plan()
    assert {file.name for file in again.missing} == REST - {*fetched}
    run(again)
    assert not hub.sent.keys() & {*fetched}


def test_broken_connection_is_continued(hub: HubStandIn) -> None:
    size = (hub.files / TRANSFORMER).stat().st_size
    hub.cut[TRANSFORMER] = size // 2
    run(plan())
    assert size <= hub.sent[TRANSFORMER] <= size + CHUNK_BYTES


def test_signal_ends_it_at_once_and_leaves_no_part(hub: HubStandIn, tmp_path: Path) -> None:
    hub.stalled.add(TRANSFORMER)
    home = tmp_path / "home"
    process = subprocess.Popen(
        [sys.executable, "-m", "longtake", "download", "some/one"],
        env={
            **os.environ,
            "HF_ENDPOINT": hub.address,
            "HF_HOME": str(home),
            "HF_HUB_OFFLINE": "0",
            "HF_HUB_DISABLE_TELEMETRY": "1",
        },
        stderr=subprocess.PIPE,
        text=True,
    )
    until(lambda: hub.sent.get(TRANSFORMER, 0) > 0)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130 and "stopped" in errors, errors
    left = [path.name for path in home.rglob("*") if path.name.endswith(".incomplete")]
    assert left == []


def test_damaged_file_is_downloaded_again(hub: HubStandIn, cache: Path) -> None:
    hub.broken.add(VAE)  # one wrong byte: its header is whole
    planned = plan()
    _, notes = run(planned)
    assert notes == [f"{VAE} is damaged: it is downloaded again"]
    (found,) = [path for path in cache.rglob(VAE)]
    assert found.read_bytes() == (hub.files / VAE).read_bytes()
    config = next(cache.rglob("tokenizer/tokenizer_config.json")).resolve()
    config.write_bytes(config.read_bytes()[::-1])  # damaged on the disk; small files are checked
    with found.resolve().open("r+b") as file:
        file.truncate(1000)
    again = plan()
    assert [file.name for file in again.missing] == [VAE]
    _, notes = run(again)
    assert notes == ["tokenizer/tokenizer_config.json is damaged: it is downloaded again"]
    assert again.missing == []


def test_file_that_arrives_damaged_is_removed(
    hub: HubStandIn, cache: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    hub.broken.add(VAE)
    hub.always_broken = True
    line = refused(capsys, "some/one")
    assert f"{VAE} of some/one arrived damaged" in line
    assert [*cache.rglob(VAE)] == []


def test_refusals(
    hub: HubStandIn, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = namedtuple("usage", "total used free")
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "disk_usage", lambda path: usage(10**12, 10**12, 10**6))
        line = refused(capsys, "some/one")
    assert "MB are to be downloaded, and 1.0 MB are free in " in line and "HF_HOME" in line
    assert not any(name in hub.sent for name in REST)
    assert "some/one has no vae/nothing.safetensors at revision" in missing_file(hub)
    assert "check the name; if it is private" in refused(capsys, "nobody/nothing")
    assert "there is no folder nothing: pass" in refused(capsys, "nothing")
    hub.gated = True
    assert "accept its terms at https://huggingface.co/some/one" in refused(capsys, "some/one")
    hub.gated = False
    hub.close()
    line = refused(capsys, "some/one")
    assert "check the name, the network and your access" in line


def missing_file(hub: HubStandIn) -> str:
    commit = Checkpoint.open("some/one").revision
    with pytest.raises(ModelError) as caught:
        hub_module.describe_files("some/one", str(commit), [VAE, "vae/nothing.safetensors"])
    return str(caught.value)


def test_dry_run_and_models_on_this_machine(
    hub: HubStandIn, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["download", "some/one", "--dry-run"]) == 0
    printed = capsys.readouterr().out
    assert TRANSFORMER in printed and "are to be downloaded" in printed
    assert not hub.sent.keys() & REST
    (hub.files / "single_file.safetensors").unlink()
    for name in ("demo", str(hub.files)):
        assert cli.main(["download", name]) == 0
        assert "there is nothing to download" in capsys.readouterr().err
