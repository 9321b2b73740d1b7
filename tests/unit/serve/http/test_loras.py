"""LoRAs over HTTP: names of the operator's folder, never paths, and only with a folder."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from longtake.configs.models import bundled
from longtake.engine.loras.choice import LORAS_STAGE
from longtake.engine.metadata import Metadata
from longtake.engine.rank_report import RankReport
from longtake.parallel import ParallelDims
from tests.simple_loras import save_lora
from tests.standin import gray_server
from tests.unit.serve.http.helpers import Gray, ended, refused

LAYERS = ("transformer_blocks.0.attn.to_q",)


@pytest.fixture
def loras(tmp_path: Path) -> Path:
    """A folder with a LoRA of the demo model, a damaged one, and files that are not offered."""
    folder = tmp_path / "loras"
    folder.mkdir()
    save_lora(folder / "style.safetensors", str(bundled()["demo"]), LAYERS, 1)
    (folder / "damaged.safetensors").write_bytes(b"\0" * 100)
    for name in (".hidden.safetensors", "notes.txt"):
        (folder / name).write_bytes(b"")
    (folder / "folder.safetensors").mkdir()
    save_lora(tmp_path / "outside.safetensors", str(bundled()["demo"]), LAYERS, 1)
    return folder


@pytest.fixture
def offering(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, loras: Path) -> Iterator[Gray]:
    """A server with that folder."""
    with gray_server(monkeypatch, tmp_path / "data", lora_folder=loras) as both:
        yield both


def test_lists_what_the_folder_offers(offering: Gray, loras: Path) -> None:
    client, _ = offering
    listed = client.get("/v1/loras").json()
    assert listed["object"] == "list"
    damaged, style = listed["data"]
    assert (style["id"], style["uses"], style["problem"]) == (
        "style.safetensors",
        ["style.safetensors"],
        None,
    )
    assert style["bytes"] == (loras / "style.safetensors").stat().st_size
    assert (damaged["id"], damaged["uses"]) == ("damaged.safetensors", [])
    assert "damaged.safetensors" in damaged["problem"]
    assert str(loras) not in damaged["problem"]
    (loras / "damaged.safetensors").unlink()
    save_lora(loras / "new.safetensors", str(bundled()["demo"]), LAYERS, 2)
    (loras / "a:b.safetensors").symlink_to(loras / "new.safetensors")
    (loras / "\x1b.safetensors").symlink_to(loras / "new.safetensors")
    found = client.get("/v1/loras").json()["data"]
    assert {each["id"]: each["uses"] for each in found} == {
        "a:b.safetensors": ["a:b.safetensors:1"],  # the last colon is that of the scale
        "new.safetensors": ["new.safetensors"],
        "style.safetensors": ["style.safetensors"],
    }


def test_a_request_names_a_lora(offering: Gray, loras: Path) -> None:
    client, service = offering
    for lora in ("style.safetensors:0.5", ["style.safetensors:0.5"]):
        video = client.post("/v1/videos", json={"prompt": "a", "lora": lora}).json()
        assert video["lora"] == ["style.safetensors:0.5"]
        assert ended(client, video["id"])["status"] == "completed"
    job = service.store.find(video["id"])
    assert job is not None
    assert job.request.lora_sha256 is not None
    form = {"prompt": "a", "lora[]": ["style.safetensors", "style.safetensors:2"]}
    assert client.post("/v1/videos", data=form).json()["lora"] == [
        "style.safetensors:1.0",
        "style.safetensors:2.0",
    ]


@pytest.mark.parametrize(
    "lora",
    [
        "../outside.safetensors",
        "/etc/passwd",
        "no_such.safetensors",
        "damaged.safetensors",
        ".hidden.safetensors",
        "folder.safetensors",
        ".",
        "style.safetensors/.",
        "style.safetensors:nan",
        "style.safetensors@vae",
        "a\0b.safetensors",
        "",
        [],
        ["style.safetensors"] * 17,
        5,
        {"style.safetensors": 1},
    ],
)
def test_refuses_all_others(offering: Gray, loras: Path, lora: object) -> None:
    client, _ = offering
    error = refused(client.post("/v1/videos", json={"prompt": "a", "lora": lora}))
    assert error["param"] == "lora"
    assert str(loras.parent) not in error["message"]


def test_digests_are_the_servers(offering: Gray) -> None:
    client, _ = offering
    fields = {"prompt": "a", "lora": ["style.safetensors"], "lora_sha256": ["0" * 64]}
    assert refused(client.post("/v1/videos", json=fields))["param"] == "lora_sha256"


def test_without_a_folder_no_file_is_looked_for(gray: Gray, loras: Path) -> None:
    client, _ = gray
    assert client.get("/v1/loras").json() == {"object": "list", "data": []}
    for lora in ("style.safetensors", str(loras / "style.safetensors"), "/no/such/file"):
        error = refused(client.post("/v1/videos", json={"prompt": "a", "lora": lora}))
        assert error["param"] == "lora"
        assert "offers no LoRAs" in error["message"]


def test_exchanges_are_measured(offering: Gray) -> None:
    client, service = offering
    video = client.post("/v1/videos", json={"prompt": "a", "lora": "style.safetensors"}).json()
    ended(client, video["id"])
    job = service.store.find(video["id"])
    assert job is not None
    assert "longtake_lora_exchange_seconds_count 0.0" in client.get("/metrics").text
    report = RankReport(0, "cpu", "none", {}, {}, 1, 1)
    config, seconds = service.engine.config, {LORAS_STAGE: 2.5}
    metadata = Metadata(job.request, config, ParallelDims(), seconds, [report], 1)
    service.metrics.observe_rendered(job, metadata)
    text = client.get("/metrics").text
    assert "longtake_lora_exchange_seconds_count 1.0" in text
    assert "longtake_lora_exchange_seconds_sum 2.5" in text
    assert f'stage="{LORAS_STAGE}"' not in text
