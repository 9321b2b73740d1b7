"""Prompt, seed and model are embedded in a video's file, unless turned off."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image
from starlette.testclient import TestClient

from longtake.configs.engine import EngineConfig
from longtake.engine.media.embedded_metadata import embedded_metadata, model_name
from longtake.engine.media.latents import read_latents
from longtake.engine.media.paths import OutputTarget, metadata_path
from longtake.engine.media.video_writer import VideoFiles
from tests.rendering import request
from tests.standin import gray_server
from tests.until import until

FRAMES = np.full((2, 32, 48, 3), 0.5, np.float32)
PROMPTS = [
    'a cat, "slowly"; x=y\\n',
    "two\nlines\tand\r\nmore",
    "Katze läuft 🐈‍⬛ 走る",
    "🐈" * 100_000,
]


@pytest.mark.parametrize("prompt", PROMPTS, ids=["marks", "lines", "letters", "long"])
@pytest.mark.parametrize("suffix", [".mp4", ".webm", ".gif", ""])
def test_prompt_seed_and_model_are_embedded(tmp_path: Path, suffix: str, prompt: str) -> None:
    path = tmp_path / f"out{suffix}"
    resolved = request(prompt=prompt, num_frames=2, seed=2**63 - 1)
    with VideoFiles(OutputTarget(path), resolved, EngineConfig(model="owner/name")) as files:
        for index, frame in enumerate(FRAMES):
            files.frame(0, index, frame)
        files.publish({})
    expected = {"title": prompt, "comment": "seed: 9223372036854775807, model: owner/name"}
    if suffix in (".mp4", ".webm"):
        with av.open(path) as container:
            found = {name.lower(): text for name, text in container.metadata.items()}
            assert len(list(container.decode(video=0))) == 2
        assert {name: found[name] for name in expected} == expected
    else:
        with Image.open(path / "00000.png" if path.is_dir() else path) as image:
            if path.is_dir():
                assert {name: image.info[name.title()] for name in expected} == expected
            else:
                assert image.info["comment"].decode() == "\n".join(expected.values())


@pytest.mark.parametrize("suffix", [".mp4", ".webm", ".gif", "", ".safetensors"])
@pytest.mark.parametrize(("metadata", "embedded"), [(True, False), (False, True), (False, False)])
def test_nothing_is_embedded_if_turned_off(
    tmp_path: Path, suffix: str, metadata: bool, embedded: bool
) -> None:
    path = tmp_path / f"out{suffix}"
    resolved = request(prompt="a secret", num_frames=2, embed_metadata=embedded)
    with VideoFiles(
        OutputTarget(path, metadata=metadata), resolved, EngineConfig(model="mine")
    ) as files:
        files.latents(np.zeros((1, 4, 1, 6, 8), np.float32))
        for index, frame in enumerate(FRAMES):
            files.frame(0, index, frame)
        files.publish({})
    assert metadata_path(path).exists() == metadata
    for file in sorted(path.iterdir()) if path.is_dir() else [path]:
        content = file.read_bytes()
        assert not any(word in content for word in (b"secret", b"seed", b"mine"))
    if suffix == ".safetensors":
        assert read_latents(path).origin is None


def test_characters_that_containers_cannot_store_are_removed() -> None:
    resolved = request(prompt="a\0cat").model_copy(update={"prompt": "a\0 cat \ud800"})
    assert embedded_metadata(resolved, EngineConfig())["title"] == "a cat ?"


def test_a_models_name_does_not_depend_on_its_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a model").mkdir()
    monkeypatch.chdir(tmp_path)
    for name in ("a model", "./a model/", str(tmp_path / "a model")):
        assert model_name(name) == "a model"
    monkeypatch.chdir(tmp_path / "a model")
    assert model_name(".") == "a model"
    assert model_name("owner/name") == "owner/name" and model_name("demo") == "demo"


def _is_completed(client: TestClient, url: str) -> bool:
    return bool(client.get(url).json()["status"] == "completed")


@pytest.mark.parametrize("of_the_server", [True, False])
def test_a_server_embeds_metadata_unless_turned_off(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, of_the_server: bool
) -> None:
    fields = {"prompt": "a secret", "seconds": "1", "size": "64x64", "seed": 7}
    with gray_server(monkeypatch, tmp_path, embed_metadata=of_the_server) as (client, service):
        for embed, expected in ((None, of_the_server), (True, True), (False, False)):
            name = client.post("/v1/videos", json={**fields, "embed_metadata": embed}).json()["id"]
            url = f"/v1/videos/{name}"
            until(partial(_is_completed, client, url))
            content = client.get(f"{url}/content").content
            assert (b"a secret" in content) == (b"seed: 7, model: demo" in content) == expected
            job = service.store.find(name)
            assert job is not None
            path = tmp_path / f"{name}.mp4"
            with VideoFiles(OutputTarget(path), job.request, service.engine.config) as files:
                for index in range(job.request.num_frames):
                    files.frame(0, index, np.full((64, 64, 3), 0.5, np.float32))
                files.publish({})
            assert path.read_bytes() == content
