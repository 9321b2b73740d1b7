"""One measurement, in a process of its own: the time and the peak memory of one way to read.

python -m benchmarks.loading.case JSON
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import HunyuanVideoTransformer3DModel

from benchmarks.memory import peak_memory
from longtake.configs.fields.lora import LoraUse
from longtake.configs.fields.weights import WeightPlace
from longtake.parallel import World
from longtake.pipelines.checkpoints.formats.source import open_source
from longtake.pipelines.checkpoints.layout import Piece
from longtake.pipelines.loading.build import build_module
from longtake.pipelines.loading.plan import ComponentPlan
from longtake.pipelines.loading.tensor_source import TensorSource
from longtake.pipelines.loading.transformer import Weights, load_transformer
from longtake.pipelines.lora.lora_file import LoraFile
from longtake.pipelines.lora.match import Deltas, combine, match
from longtake.pipelines.lora.targets import LoraTargets
from longtake.pipelines.models.hunyuan_video.transformer.denoiser import HunyuanVideoDenoiser

_PIECE_BYTES = 8 * 2**20


@dataclass(frozen=True)
class Measured:
    """What a case took.

    Attributes:
        seconds: Time from the first read to the last.
        cpu_s: Time of all threads on cores.
        peak_bytes: Peak of the host's memory above that before.
    """

    seconds: float
    cpu_s: float
    peak_bytes: int


@dataclass(frozen=True)
class Case:
    """What is measured.

    Attributes:
        weights: The file of the transformer.
        lora: The file of the LoRA; None without.
        config: Content of the transformer's config.json; None only reads the files.
        place: Where the weights are loaded to.
        device: Device that they are loaded for.
        cold: Whether the files are dropped from the page cache before.
        threads: Threads of torch.
    """

    weights: str
    lora: str | None
    config: dict[str, Any] | None
    place: WeightPlace
    device: str
    cold: bool
    threads: int

    def measure(self) -> Measured:
        """Run the case in this process."""
        torch.set_num_threads(self.threads)
        files = [Path(each) for each in (self.weights, self.lora) if each is not None]
        run = self._prepare() if self.config is not None else lambda: _read(files)
        for file in files:
            if self.cold:
                _drop(file)
            else:
                _read([file])
        with peak_memory("cpu") as peak_bytes:
            started, cpu_started = time.perf_counter(), time.process_time()
            run()
            if self.device == "cuda":
                torch.cuda.synchronize()
            seconds, cpu_s = time.perf_counter() - started, time.process_time() - cpu_started
        return Measured(seconds, cpu_s, peak_bytes())

    def _prepare(self) -> Callable[[], None]:
        """Build the model without weights, and read the headers."""
        model = build_module(HunyuanVideoTransformer3DModel, self.config or {}, "transformer")
        denoiser, world = HunyuanVideoDenoiser(model), World(torch.device(self.device))
        if self.device == "cuda":
            torch.zeros(1, device="cuda")  # starts CUDA
        source = open_source([Path(self.weights)])
        loras = {} if self.lora is None else _deltas(Path(self.lora), source)
        plan = ComponentPlan(torch.bfloat16, self.place, loras=loras)
        return lambda: load_transformer(denoiser, model, Weights(source), world, plan)


def _deltas(path: Path, source: TensorSource) -> Mapping[str, Deltas]:
    """What the LoRA adds, matched as for a rendering."""
    shapes = {name: each.shape for name, each in source.tensors.items()}
    names = {name: (Piece(name),) for name in shapes}
    targets = {"transformer": LoraTargets(shapes, {"diffusers'": names})}
    return combine([match(LoraFile.read(path), LoraUse(str(path)), targets)])


def _read(files: list[Path]) -> None:
    """Read files once, without keeping anything."""
    buffer = memoryview(bytearray(_PIECE_BYTES))
    for file in files:
        with open(file, "rb", buffering=0) as opened:
            while opened.readinto(buffer):
                pass


def _drop(file: Path) -> None:
    """Drop a file from the page cache."""
    with open(file, "rb") as opened:
        os.fsync(opened.fileno())
        os.posix_fadvise(opened.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def measure_apart(case: Case) -> Measured:
    """Run a case in a process of its own."""
    command = [sys.executable, "-m", "benchmarks.loading.case", json.dumps(asdict(case))]
    printed = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    return Measured(**json.loads(printed.splitlines()[-1]))


if __name__ == "__main__":
    with torch.no_grad():
        print(json.dumps(asdict(Case(**json.loads(sys.argv[1])).measure())))
