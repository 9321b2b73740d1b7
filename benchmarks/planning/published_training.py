"""The training planner against the USP paper's runs (arXiv 2405.07719 v5) on A800.

    python -m benchmarks.planning.published_training           # the five runs in data/
    python -m benchmarks.planning.published_training FILE.csv  # others, in the same columns

All runs are planned alike: one sequence a replica and step, in Megatron-LM (in which the authors
integrated USP), with its distributed optimizer: ZeRO-1, gradients in float32, exchanges after
backward. What is recomputed is the same for all layouts of one model, machine and sequence, so that
they compare: the least with which the sequence fits without tensor parallelism. The last columns
are the errors with ZeRO-3, with full recomputation, and with both.
"""

from __future__ import annotations

import csv
import sys
from dataclasses import dataclass
from pathlib import Path

from longtake.configs.decoders import load_decoder
from longtake.configs.hardware import load_hardware
from longtake.engine.planning.training.layouts import TrainingLayout, Zero
from longtake.engine.planning.training.planner import TrainingPrediction, least_recompute, predict
from longtake.engine.planning.training.training_input import Recompute, TrainingInput
from longtake.engine.tools.bench.markdown import markdown_table

RUNS = Path(__file__).parent / "data" / "usp_training_mfu.csv"
_HARDWARE, _GPUS_PER_NODE = "a800", 8


@dataclass(frozen=True)
class Run:
    """One published run.

    Attributes:
        model: Name of the decoder.
        nodes: Number of nodes of 8 GPUs.
        sequence: Tokens of the sequence.
        tensor, ulysses, ring: Degrees.
        mfu: Published model FLOPs utilization.
    """

    model: str
    nodes: int
    sequence: int
    tensor: int
    ulysses: int
    ring: int
    mfu: float

    @property
    def training(self) -> TrainingInput:
        """The work of the run."""
        return TrainingInput(
            config=load_decoder(self.model),
            hardware=load_hardware(_HARDWARE),
            sequence=self.sequence,
            batch=self._replicas,
        )

    @property
    def _replicas(self) -> int:
        """What the degrees leave over of the GPUs is data parallel."""
        return self.nodes * _GPUS_PER_NODE // (self.tensor * self.ulysses * self.ring)

    def layout(self, zero: Zero = 1) -> TrainingLayout:
        """The layout of the run."""
        return TrainingLayout(
            data=self._replicas,
            ring=self.ring,
            ulysses=self.ulysses,
            tensor=self.tensor,
            zero=zero,
        )

    @property
    def recompute(self) -> Recompute:
        """What is recomputed of each block."""
        untensored = TrainingLayout(ring=self.nodes, ulysses=_GPUS_PER_NODE, zero=1)
        return least_recompute(self.training, untensored) or "full"

    def predicted(self, zero: Zero = 1, recompute: Recompute | None = None) -> TrainingPrediction:
        """The prediction of the run.

        Args:
            zero: ZeRO's stage.
            recompute: What is recomputed; :attr:`recompute` if None.
        """
        return predict(self.training, self.layout(zero), recompute or self.recompute)

    def error(self, zero: Zero = 1, recompute: Recompute | None = None) -> float:
        """Relative error of the predicted utilization; arguments as of :meth:`predicted`."""
        return self.predicted(zero, recompute).mfu / self.mfu - 1


def runs(path: Path = RUNS) -> list[Run]:
    """The runs of a file."""
    with path.open() as file:
        rows = csv.DictReader(line for line in file if not line.startswith("#"))
        return [
            Run(
                row["model"],
                int(row["nodes"]),
                int(row["sequence"]),
                int(row["tp_degree"]),
                int(row["ulysses_degree"]),
                int(row["ring_degree"]),
                float(row["mfu"]),
            )
            for row in rows
        ]


def table(found: list[Run]) -> str:
    """Published and predicted utilization, and what the time goes to, in Markdown."""
    rows = []
    for run in found:
        each = run.predicted()
        errors = (run.error(), run.error(3), run.error(1, "full"), run.error(3, "full"))
        parts = ("matrices_s", "attention_s", "memory_s", "exposed_s")
        rows.append(
            (
                f"{run.model}, {run.nodes} x {_GPUS_PER_NODE} A800, {run.sequence}",
                each.layout.name,
                each.recompute,
                *(f"{getattr(each.time, part):.2f}" for part in parts),
                f"{each.memory.total / 2**30:.1f}",
                f"{run.mfu:.2f}",
                f"{each.mfu:.3f}",
                *(f"{100 * error:+.1f} %" for error in errors),
            )
        )
    columns = ("run", "layout", "recompute", "matrices s", "attention s", "memory s", "exposed s")
    results = ("GiB", "published MFU", "predicted", "error", "ZeRO-3", "full", "ZeRO-3, full")
    return markdown_table((*columns, *results), rows)


if __name__ == "__main__":
    print(table(runs(*map(Path, sys.argv[1:]))))
