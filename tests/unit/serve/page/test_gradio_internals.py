"""Gradio's routes and calls match :mod:`longtake.serve.page.gradio_internals`."""

from __future__ import annotations

import subprocess
import sys

CHECK = """
import gradio as gr
from fastapi import FastAPI
from starlette.testclient import TestClient
from longtake.serve.page.gradio_internals import CALL_PATH, PAGE_PATHS, encode_call, num_arguments

with gr.Blocks(analytics_enabled=False) as blocks:
    one, other = gr.Textbox(), gr.Textbox()
    one.change(lambda a, b: f"{a}{b}", [one, other], [other], queue=False)
    one.blur(None, [one], js="(one) => one")
app = FastAPI()
gr.mount_gradio_app(app, blocks, "/", ssr_mode=False)
with TestClient(app) as client:
    ((function, count),) = num_arguments(blocks).items()
    assert count == 2, count
    answer = client.post(CALL_PATH, json=encode_call(function, ["a", "b"]))
    assert answer.json()["data"] == ["ab"], answer.text
    assert PAGE_PATHS["POST"].fullmatch(CALL_PATH)
    for path in ("/", "/config", "/theme.css", "/gradio_api/app_id"):
        assert PAGE_PATHS["GET"].fullmatch(path), path
        assert client.get(path).status_code == 200, path
    script = client.get("/").text.partition('src="./')[2].partition('"')[0]
    assert PAGE_PATHS["GET"].fullmatch(f"/{script}"), script
    for path in ("/static/../config", "/assets/..", "/svelte//etc/passwd", "/static/a/../../b"):
        assert not PAGE_PATHS["GET"].fullmatch(path), path
    foreign = client.get("/config", headers={"origin": "https://other.example"})
    assert "access-control-allow-origin" in foreign.headers  # why the server removes it
"""


def test_gradio_has_these_paths_and_accepts_these_calls() -> None:
    """Runs in a separate process: Gradio leaves an event loop open, which pytest reports."""
    found = subprocess.run([sys.executable, "-c", CHECK], capture_output=True, text=True)
    assert found.returncode == 0, found.stderr
