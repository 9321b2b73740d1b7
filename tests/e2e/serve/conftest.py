"""The server that the tests of this folder share."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from longtake.configs.models import bundled
from tests.serving import Server, serving
from tests.simple_loras import save_lora


@pytest.fixture(scope="package")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """The demo model on two ranks, with short timeouts and a LoRA to choose."""
    arguments = ["--devices", "2", "--longest-s", "2000", "--request-timeout-s", "3"]
    loras = tmp_path_factory.mktemp("loras")
    layers = ("transformer_blocks.0.attn.to_q", "proj_out")
    save_lora(loras / "style.safetensors", str(bundled()["demo"]), layers, 1)
    arguments += ["--stop-timeout-s", "3", "--lora-folder", str(loras)]
    with serving(tmp_path_factory.mktemp("serve"), *arguments) as running:
        yield running
