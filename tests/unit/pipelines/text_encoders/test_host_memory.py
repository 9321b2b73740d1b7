"""Memory of a process that loads an encoder and encodes, by the place of its weights."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import torch
from safetensors.torch import save_file

from longtake.pipelines.text_encoders.configs import LlamaConfig
from longtake.pipelines.text_encoders.tensors import llama_tensors

MIB = 2**20

CONFIG = {
    "vocab_size": 24576,
    "hidden_size": 1024,
    "intermediate_size": 3072,
    "num_attention_heads": 8,
    "num_hidden_layers": 7,
    "model_type": "llama",
}
"""A LLaMA of 7 layers of 26 MiB and a token embedding of 48 MiB."""

PEAKS = """
import ctypes, gc, json, sys
import torch
from transformers import LlamaModel
from longtake.pipelines.loading.checkpoint import Checkpoint
from longtake.pipelines.loading.plan import ComponentPlan
from longtake.pipelines.text_encoders.loading import load_encoder

def status(name):
    (line,) = [line for line in open("/proc/self/status") if line.startswith(name + ":")]
    return int(line.split()[1]) * 1024

def grows(folder, place):
    checkpoint, plan = Checkpoint.open(folder), ComponentPlan(torch.bfloat16, place)
    with torch.no_grad():
        encoder = load_encoder(checkpoint, "text_encoder", LlamaModel, plan, torch.device("cpu"))
        with encoder.on_device():
            encoder.module(torch.arange(40)[None])

folder, warm, *places = sys.argv[1:]
grows(warm, "disk")
found = {}
for place in places:
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)  # what the place before has left
    open("/proc/self/clear_refs", "w").write("5")  # VmHWM begins anew
    before = status("VmRSS")
    grows(folder, place)
    found[place] = status("VmHWM") - before
print(json.dumps(found))
"""
"""Bytes that a process takes at most, beyond what it has, for each place."""


def test_peak_of_each_place(model: str, tmp_path: Path) -> None:
    """The files are float16, so that every tensor is converted."""
    shutil.copytree(model, tmp_path / "large")
    (tmp_path / "large/text_encoder/config.json").write_text(json.dumps(CONFIG))
    shapes = dict(llama_tensors(LlamaConfig.model_validate(CONFIG)))
    tensors = {name: torch.zeros(shape, dtype=torch.float16) for name, shape in shapes.items()}
    save_file(tensors, tmp_path / "large/text_encoder/model.safetensors", {"format": "pt"})
    whole = sum(tensor.nbytes for tensor in tensors.values())
    layer = sum(each.nbytes for name, each in tensors.items() if name.startswith("layers.0."))
    arguments = [str(tmp_path / "large"), model, "disk", "streamed", "resident"]
    run = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", PEAKS, *arguments],
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert run.returncode == 0, run.stderr
    peaks = json.loads(run.stdout)
    chunks = 2 * 16 * MIB  # what is read at a time, and its conversion
    activations = 8 * MIB
    assert 2 * layer < peaks["disk"] < 2 * layer + chunks + activations < whole / 2
    assert whole < peaks["resident"] < whole + chunks + activations
    assert whole < peaks["streamed"] < whole + 2 * layer + chunks + activations  # slots, on a CPU
