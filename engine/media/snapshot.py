"""Snapshots of a rendering in files: written at once, checked on reading, of no layout."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from pydantic import BaseModel, Field, ValidationError

from longtake.configs.engine import EngineConfig
from longtake.configs.request import NOT_OF_THE_LATENTS, ResolvedRequest
from longtake.configs.snapshot import SnapshotConfig
from longtake.errors import EngineError, LongtakeError, one_line
from longtake.files.atomic import cause, partial_path, write_whole
from longtake.pipelines.snapshots import LoopState, Snapshots
from longtake.pipelines.spec import LatentGrid
from longtake.pipelines.tensor_files import MAX_LATENTS_BYTES, TensorFileError, open_tensors
from longtake.version import library_versions

if TYPE_CHECKING:
    import torch

    from longtake.parallel import World

_HEADER = "longtake-snapshot"
_HEADER_BYTES = 4096
_PIXEL_VERSIONS = ("longtake", "torch", "diffusers", "transformers")


class UnusableSnapshotError(LongtakeError):
    """A snapshot that is damaged, or another rendering's: it begins anew."""


class Identity(BaseModel):
    """Everything that latents follow from.

    Attributes:
        request: that is rendered.
        model: fingerprint of its files; see :meth:`Checkpoint.fingerprint`.
        dtype: of weights and activations; and of the autoencoder, which encodes a picture.
        versions: of the libraries that compute.
    """

    request: ResolvedRequest
    model: str
    dtype: str
    versions: dict[str, str]

    @classmethod
    def of(cls, request: ResolvedRequest, engine: EngineConfig, model: str) -> Identity:
        """The identity of a rendering by this installation.

        Args:
            engine: with its dtype chosen.
            model: the fingerprint.
        """
        installed = library_versions()
        named = {name: installed[name] for name in _PIXEL_VERSIONS if name in installed}
        dtype: str = engine.dtype
        if request.i2v_mode is not None:
            dtype += f", the vae's {engine.vae_dtype}"
        return cls(request=request, model=model, dtype=dtype, versions=named)

    def unlike(self, other: Identity) -> str:
        """In what another differs; empty if in nothing that counts."""
        mine, others = self.request.model_dump(), other.request.model_dump()
        for name in mine.keys() - NOT_OF_THE_LATENTS:
            if mine[name] != others[name]:
                return f"another request: {name}={others[name]!r}, not {mine[name]!r}"
        if self.model != other.model:
            return "another model, or other weights"
        if self.dtype != other.dtype:
            return f"another dtype: {other.dtype}, not {self.dtype}"
        for name, version in self.versions.items():
            if other.versions.get(name) != version:
                return f"another version: {name} {other.versions.get(name)}, not {version}"
        return ""


class _Header(BaseModel):
    identity: Identity
    steps_done: int = Field(ge=1)
    sha256: str


@dataclass(frozen=True)
class Snapshot:
    """What a file of a snapshot holds."""

    identity: Identity
    state: LoopState


def snapshot_path(output: Path, number: int = 0) -> Path:
    """Where the snapshot of an output that is being rendered stands: beside it.

    Args:
        number: tells it from those that other renderings left there.
    """
    name = f"snapshot-{number}" if number else "snapshot"
    return output.with_name(f"{output.stem}.{name}.safetensors")


def is_snapshot(path: Path) -> bool:
    """Whether a file begins as a snapshot does, which may be damaged or another rendering's."""
    if not path.is_file():  # a pipe would be waited for
        return False
    with suppress(OSError), path.open("rb") as file:
        return _HEADER.encode() in file.read(_HEADER_BYTES)
    return False


def write_snapshot(path: Path, identity: Identity, state: LoopState) -> None:
    """Write a snapshot, which replaces an earlier one once it is whole and on the disk.

    Raises:
        EngineError: it cannot be written; the earlier one is still there.
    """
    from safetensors.torch import save  # imports torch, without which files can be named

    tensors = {"latents": state.latents, **state.scheduler}
    tensors = {name: tensor.cpu().contiguous() for name, tensor in tensors.items()}
    header = _Header(identity=identity, steps_done=state.steps_done, sha256=_digest(tensors))
    content = save(tensors, metadata={_HEADER: header.model_dump_json()})
    write_whole(path, content, durable=True, partial=_partial(path))


def drop_snapshot(path: Path) -> None:
    """Remove a snapshot, and what a process that was killed left of one."""
    path.unlink(missing_ok=True)
    drop_unfinished(path)


def drop_unfinished(path: Path) -> None:
    """Remove what a process that was killed left of a snapshot that it was writing."""
    _partial(path).unlink(missing_ok=True)


def _partial(path: Path) -> Path:
    """One name, so that what a killed process left is written over."""
    return partial_path(path, "snapshot")


def read_snapshot(path: Path) -> Snapshot | None:
    """Read a snapshot; None if there is none.

    Raises:
        UnusableSnapshotError: it is damaged.
    """
    try:
        with open_tensors(path, "pt", MAX_LATENTS_BYTES) as file:
            header = _Header.model_validate_json((file.metadata() or {}).get(_HEADER, ""))
            tensors = {name: file.get_tensor(name) for name in file.keys()}
    except FileNotFoundError:
        return None
    except OSError as error:
        raise UnusableSnapshotError(f"{path} cannot be read: {cause(error)}") from error
    except (TensorFileError, ValidationError) as error:
        raise UnusableSnapshotError(
            f"{path} is damaged, or no snapshot: {one_line(error)[:100]}"
        ) from error
    request = header.identity.request
    if _digest(tensors) != header.sha256 or "latents" not in tensors:
        raise UnusableSnapshotError(f"{path} is damaged: its checksum is another")
    if header.steps_done > request.num_inference_steps:
        raise UnusableSnapshotError(f"{path} is damaged: it has more steps than its request")
    latents = tensors.pop("latents")
    return Snapshot(header.identity, LoopState(header.steps_done, latents, tensors))


def usable_snapshot(path: Path, identity: Identity) -> LoopState | None:
    """The state that a rendering can go on from; None if there is none.

    Raises:
        UnusableSnapshotError: it is damaged, or another rendering's.
    """
    found = read_snapshot(path)
    if found is None:
        return None
    if reason := identity.unlike(found.identity):
        raise UnusableSnapshotError(f"{path} is of {reason}")
    return found.state


class SnapshotPlan(BaseModel):
    """How a rendering is kept on its way, and what it goes on from.

    Attributes:
        path: of the file, on rank 0's host.
        identity: of the rendering.
        config: how often.
        steps_done: that the file holds already; 0: the rendering begins anew.
        at_the_end: keep the finished latents, too, for as long as they are decoded.
    """

    path: Path
    identity: Identity
    config: SnapshotConfig = SnapshotConfig()
    steps_done: int = 0
    at_the_end: bool = True


def plan_snapshots(
    path: Path,
    identity: Identity,
    config: SnapshotConfig,
    *,
    resume: bool,
    at_the_end: bool = True,
) -> tuple[SnapshotPlan, str]:
    """How a rendering is kept on its way, and where it begins, in words if not at its start.

    Args:
        resume: go on from what the file holds, if that is of this rendering; else begin anew, and
            say so.
        at_the_end: keep the finished latents, too, for as long as they are decoded.
    """
    plan = SnapshotPlan(path=path, identity=identity, config=config, at_the_end=at_the_end)
    if not resume:
        return plan, ""
    try:
        state = usable_snapshot(path, identity)
    except UnusableSnapshotError as error:
        return plan, f"{error}: it begins anew"
    if state is None:
        return plan, ""
    done, total = state.steps_done, identity.request.num_inference_steps
    return plan.model_copy(update={"steps_done": done}), f"goes on after step {done} of {total}"


@contextmanager
def kept_on_the_way(
    plan: SnapshotPlan | None, world: World, grid: LatentGrid
) -> Iterator[Snapshots | None]:
    """What keeps a rendering on its way, if it is to be kept; rank 0 writes."""
    if plan is None:
        yield None
        return

    def write(state: LoopState) -> None:
        if world.rank == 0:
            write_snapshot(plan.path, plan.identity, state)

    kept = Snapshots(plan.config, 4 * math.prod(grid.shape), write, at_the_end=plan.at_the_end)
    try:
        yield kept
    finally:
        kept.close()


def state_to_go_on_from(plan: SnapshotPlan | None, world: World) -> LoopState | None:
    """On rank 0, the state that a rendering goes on from, if it does not begin anew.

    Raises:
        EngineError: the file is no longer what it was when that was decided.
    """
    if plan is None or plan.steps_done == 0 or world.rank != 0:
        return None
    try:
        state = usable_snapshot(plan.path, plan.identity)
    except UnusableSnapshotError as error:
        raise EngineError(str(error)) from error
    if state is None or state.steps_done != plan.steps_done:
        raise EngineError(f"{plan.path} was changed since this rendering began: render it again")
    return state


def _digest(tensors: Mapping[str, torch.Tensor]) -> str:
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype} {list(tensor.shape)} ".encode())
        digest.update(np.ascontiguousarray(tensor.numpy()).data)
    return digest.hexdigest()
