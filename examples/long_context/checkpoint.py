"""Checkpoints that resume under any layout.

Every rank writes its shards to a safetensors file that says where in the whole tensors they lie;
every rank of the next run reads the parts that it needs. Nothing is pickled.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_state_dict,
    set_state_dict,
)

from longtake.errors import RequestError

_OPTIONS = StateDictOptions(flatten_optimizer_state_dict=True)
_RUN_FILE = "run.json"


def make_folder(folder: Path) -> None:
    """Make the folder of a run's checkpoints, if there is none.

    Raises:
        RequestError: It cannot be made or written to.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RequestError(
            f"checkpoints={str(folder)!r} cannot be made ({error.strerror}): name another folder"
        ) from error
    if not os.access(folder, os.W_OK | os.X_OK):
        raise RequestError(
            f"checkpoints={str(folder)!r} cannot be written to: name another folder, or change its "
            "permissions"
        )


def latest(folder: Path) -> tuple[int, Path] | None:
    """The number of steps and the folder of the newest checkpoint; None if there is none."""
    found = [
        (int(match[1]), path)
        for path in folder.glob("step-*")
        if (match := re.fullmatch(r"step-(\d+)", path.name))
    ]
    return max(found, default=None)


def check_run(path: Path, run: Mapping[str, Any]) -> None:
    """Check that a checkpoint is of a run with the same numbers.

    Args:
        path: Folder of the checkpoint.
        run: Options that determine the weights, by name.

    Raises:
        RequestError: It is of another run, or incomplete.
    """
    try:
        saved = dict(json.loads((path / _RUN_FILE).read_text()))
    except (OSError, ValueError, TypeError) as error:
        raise RequestError(
            f"{path} is no checkpoint, for its {_RUN_FILE} cannot be read: remove it"
        ) from error
    for name, value in run.items():
        if saved.get(name) != value:
            raise RequestError(
                f"{name}={value!r}, and {path} was trained with {name}={saved.get(name)!r}: pass "
                "that, or another --checkpoints folder"
            )


def save(
    folder: Path,
    step: int,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    run: Mapping[str, Any],
) -> Path:
    """Write the weights and the optimizer's state after ``step`` steps. Collective.

    Returns:
        The folder of the checkpoint. It appears under this name once it is whole.
    """
    path, unfinished = folder / f"step-{step}", folder / f"unfinished-{step}"
    if dist.get_rank() == 0:
        shutil.rmtree(unfinished, ignore_errors=True)
        unfinished.mkdir(parents=True)
        (unfinished / _RUN_FILE).write_text(json.dumps(dict(run), indent=2))
    dist.barrier()
    writer = dcp.HuggingFaceStorageWriter(str(unfinished), save_distributed=True)
    dcp.save(_tensors(*get_state_dict(model, optimizer, options=_OPTIONS)), storage_writer=writer)
    if dist.get_rank() == 0:
        unfinished.rename(path)
    dist.barrier()
    return path


def load(path: Path, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """Read the weights and the optimizer's state, in place. Collective."""
    weights, state = get_state_dict(model, optimizer, options=_OPTIONS)
    dcp.load(_tensors(weights, state), storage_reader=dcp.HuggingFaceStorageReader(str(path)))
    set_state_dict(
        model, optimizer, model_state_dict=weights, optim_state_dict=state, options=_OPTIONS
    )


def _tensors(*states: Mapping[str, Any]) -> dict[str, torch.Tensor]:
    """The tensors of a model's and its optimizer's state; the optimizer's options are numbers."""
    return {
        name: value
        for state in states
        for name, value in state.items()
        if isinstance(value, torch.Tensor)
    }
