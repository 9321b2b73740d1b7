"""Trains a LLaMA on long sequences.

    python -m examples.long_context.text corpus.txt
    torchrun --nproc-per-node 4 -m examples.long_context.train --text corpus.txt --layout 1x2x2x1

The README beside this file shows more.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Sequence

import torch
import torch.distributed as dist

from examples.long_context import checkpoint
from examples.long_context.data import Text
from examples.long_context.model import check_tensor_parallel, make_config, make_model, parallelize
from examples.long_context.options import Options
from examples.long_context.trainer import Trainer
from longtake.errors import RefusedInputError

EXIT_REFUSED = 2
FIRST_RANK_PRINTS_S = 2.0


def main(words: Sequence[str] | None = None) -> int:
    """Train, on the ranks of torchrun or in one process; returns the exit code."""
    try:
        options = Options.parse(words)
        check(options)
    except RefusedInputError as error:
        if os.environ.get("RANK", "0") == "0":
            print(f"train: {error}", file=sys.stderr)
        else:
            time.sleep(FIRST_RANK_PRINTS_S)  # torchrun kills all ranks once one has ended
        return EXIT_REFUSED
    train(options, join())
    dist.barrier()
    dist.destroy_process_group()
    return 0


def check(options: Options) -> None:
    """Refuse what cannot run, before anything is built.

    Raises:
        RefusedInputError: The layout does not fit the ranks or the model, the folder of checkpoints
            cannot be made, or they are another run's.
    """
    options.layout.check_ranks(int(os.environ.get("WORLD_SIZE", "1")))
    check_tensor_parallel(make_config(*options.sizes), options.layout.tp)
    if options.checkpoints is None:
        return
    checkpoint.make_folder(options.checkpoints)
    if newest := checkpoint.latest(options.checkpoints):
        checkpoint.check_run(newest[1], options.run)


def train(options: Options, device_type: str) -> None:
    """Train to the last step, from the newest checkpoint if there is one."""
    trainer = make_trainer(options, device_type)
    num_weights = sum(each.numel() for each in trainer.model.parameters())
    say(f"{num_weights:,} weights, layout {options.layout} (dp x ring x ulysses x tp)")
    start = 0
    if options.checkpoints and (newest := checkpoint.latest(options.checkpoints)):
        start, path = newest
        checkpoint.load(path, trainer.model, trainer.optimizer)
        left = max(0, options.steps - start)
        say(f"continuing from {path}: {left} of {options.steps} steps left")
    for step in range(start, options.steps):
        started_s = time.monotonic()
        report = trainer.step(step)
        tokens_per_s = trainer.text.tokens_per_batch / (time.monotonic() - started_s)
        say(
            f"step {step + 1:5}   loss {report.loss:.4f}   gradient {report.gradient_norm:.4f}   "
            f"{tokens_per_s:8,.0f} tokens/s"
        )
        if options.checkpoints and options.is_saved(step + 1):
            path = checkpoint.save(
                options.checkpoints, step + 1, trainer.model, trainer.optimizer, options.run
            )
            say(f"wrote {path}")


def make_trainer(options: Options, device_type: str) -> Trainer:
    """The model, its optimizer and the text, on this rank. Collective."""
    meshes = options.layout.build_meshes(device_type)
    model = make_model(make_config(*options.sizes), options.seed)
    parallelize(
        model,
        meshes,
        zero=options.zero,
        recompute=options.recompute,
        dtype=getattr(torch, options.dtype),
    )
    return Trainer(
        model,
        torch.optim.AdamW(model.parameters(), options.learning_rate),
        Text.from_file(options.text, options.num_tokens, options.batch_size, options.seed),
        options.layout,
        meshes,
        accumulation=options.accumulation,
        clip_norm=options.clip_norm,
        packed=options.packed,
    )


def join() -> str:
    """Join the process group of torchrun's ranks, or make one of this process alone.

    Returns:
        "cuda" if there are GPUs, which each rank has one of; otherwise "cpu".
    """
    on_gpu = torch.cuda.is_available()
    if on_gpu:
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
    backend = "nccl" if on_gpu else "gloo"
    if "RANK" in os.environ:
        dist.init_process_group(backend)
    else:
        dist.init_process_group(backend, store=dist.HashStore(), rank=0, world_size=1)
    return "cuda" if on_gpu else "cpu"


def say(line: str) -> None:
    """Print a line on the first rank."""
    if dist.get_rank() == 0:
        print(line, flush=True)


if __name__ == "__main__":
    sys.exit(main())
