"""Checks of every machine: Python, libraries, memory, disks, encoders, a port."""

from __future__ import annotations

import importlib.metadata
import os
import re
import shutil
import socket
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from longtake.engine.tools.doctor.finding import CheckContext, Finding, gib
from longtake.files.atomic import cause

OLDEST_PYTHON = (3, 10)
MEMORY_BYTES_A_RANK = 2**30
"""What the libraries take, roughly."""
FREE_DISK_BYTES = 5 * 2**30
SHARED_MEMORY_BYTES = 2**30
SHARED_MEMORY = Path("/dev/shm")

_NAMED = ("torch", "diffusers", "transformers")
_NUM_FRAMES = 8


def python(context: CheckContext) -> Iterator[Finding]:
    """The version of Python."""
    version, oldest = ".".join(map(str, sys.version_info[:3])), ".".join(map(str, OLDEST_PYTHON))
    if sys.version_info < OLDEST_PYTHON:
        way_out = f"create an environment with Python {oldest} or later"
        yield Finding("python", "failure", f"{version} is older than {oldest}", way_out)
    else:
        yield Finding("python", "ok", version)


def libraries(context: CheckContext) -> Iterator[Finding]:
    """Each required library and its oldest supported version."""
    versions: dict[str, str] = {}
    problems: dict[str, str] = {}
    for name, oldest in _required():
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            problems[f"{name}>={oldest}"] = f"{name} is not installed"
            continue
        if _numbers(versions[name]) < _numbers(oldest):
            problems[f"{name}>={oldest}"] = f"{name} {versions[name]} is older than {oldest}"
    if problems:
        way_out = "pip install " + " ".join(f"'{requirement}'" for requirement in problems)
        yield Finding("libraries", "failure", "; ".join(problems.values()), way_out)
        return
    named = ", ".join(f"{name} {versions.pop(name)}" for name in _NAMED if name in versions)
    yield Finding("libraries", "ok", f"{named}, and {len(versions)} more")


def _required() -> list[tuple[str, str]]:
    """Required libraries and their oldest supported versions, from longtake's metadata."""
    required = []
    for line in importlib.metadata.requires("longtake") or ():
        requirement = re.fullmatch(r"([\w.-]+)>=([\w.]+)", line)
        if requirement:  # requirements of extras do not match
            required.append((requirement[1], requirement[2]))
    return required


def _numbers(version: str) -> tuple[int, ...]:
    """2.13.0+cpu as (2, 13, 0)."""
    return tuple(map(int, re.findall(r"\d+", re.split(r"[^\d.]", version)[0])))


def memory(context: CheckContext) -> Iterator[Finding]:
    """Free memory of the host or the container."""
    import torch

    from longtake.pipelines.codec.memory import free_bytes

    free, ranks = free_bytes(torch.device("cpu")), context.engine.devices
    message = f"{gib(free)} free"
    if free < ranks * MEMORY_BYTES_A_RANK:
        message += f", and devices={ranks} needs {gib(ranks * MEMORY_BYTES_A_RANK)} at least"
        way_out = "end other programs, raise the container's limit, or ask for fewer --devices"
        yield Finding("memory", "warning", message, way_out)
    else:
        yield Finding("memory", "ok", message)


def shared_memory(context: CheckContext) -> Iterator[Finding]:
    """Shared memory, through which GPUs without peer access exchange data."""
    total = shutil.disk_usage(SHARED_MEMORY).total if SHARED_MEMORY.is_dir() else 0
    message = f"{gib(total)} in {SHARED_MEMORY}"
    if context.num_gpus > 1 and total < SHARED_MEMORY_BYTES:
        message += f", and NCCL needs up to {gib(SHARED_MEMORY_BYTES)}"
        yield Finding(
            "shared memory", "warning", message, "docker run --shm-size=8g, or --ipc=host"
        )
    else:
        yield Finding("shared memory", "ok", message)


def folder(context: CheckContext) -> Iterator[Finding]:
    """The output folder."""
    path = Path(os.path.expanduser(context.doctor.folder))
    if not path.is_dir():
        message = f"{path} is no folder" if path.exists() else f"there is no folder {path}"
        yield Finding("folder", "failure", message, "make it, or name another with --folder")
        return
    reason = _not_writable(path)
    if reason:
        message = f"{path} cannot be written to: {reason}"
        yield Finding("folder", "failure", message, "name another with --folder, or make room")
        return
    free = shutil.disk_usage(path).free
    message = f"{path.resolve()} can be written to, {gib(free)} free"
    if free < FREE_DISK_BYTES:
        message += f", less than {gib(FREE_DISK_BYTES)}"
        yield Finding("folder", "warning", message, "make room, or name another with --folder")
    else:
        yield Finding("folder", "ok", message)


def hub_cache(context: CheckContext) -> Iterator[Finding]:
    """The cache of models from the hub; models in folders do not need it."""
    from huggingface_hub import constants

    path = Path(constants.HF_HUB_CACHE)
    existing = next(each for each in (path, *path.parents) if each.exists())
    reason = _not_writable(existing)
    if reason:
        message = f"{path} cannot be written to: {reason}: no model can be downloaded from the hub"
        yield Finding("hub cache", "warning", message, "name another folder in HF_HUB_CACHE")
    else:
        free = shutil.disk_usage(existing).free
        yield Finding("hub cache", "ok", f"{path} can be written to, {gib(free)} free")


def _not_writable(path: Path) -> str:
    """Why a folder cannot be written to; empty if it can."""
    try:
        with tempfile.TemporaryFile(dir=path) as file:
            file.write(bytes(4096))
            file.flush()
    except OSError as error:
        return cause(error)
    return ""


def encoder(suffix: str, context: CheckContext) -> Iterator[Finding]:
    """Write a clip as a rendering does, and read it back."""
    import imageio.v3 as iio
    import numpy as np

    from longtake.engine.media.frame_writers import WRITERS, VideoHeader

    with tempfile.TemporaryDirectory(prefix="longtake-") as temporary:
        path = Path(temporary) / f"clip{suffix}"
        writer = WRITERS[suffix](path, VideoHeader((_NUM_FRAMES, 32, 48), 24.0))
        try:
            for index in range(_NUM_FRAMES):
                writer.write(index, np.full((32, 48, 3), index / _NUM_FRAMES, np.float32))
            writer.close()
        finally:
            writer.discard()
        read = len(iio.imread(path))
    message = f"{_NUM_FRAMES} frames written, {read} read back"
    if read != _NUM_FRAMES:
        way_out = "pip install --force-reinstall av imageio pillow"
        yield Finding(f"encoder {suffix}", "failure", message, way_out)
    else:
        yield Finding(f"encoder {suffix}", "ok", message)


def port(context: CheckContext) -> Iterator[Finding]:
    """Whether a port on localhost is free."""
    port_number = context.doctor.port
    with socket.socket() as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as servers do
        try:
            listener.bind(("127.0.0.1", port_number))
            listener.listen()
        except OSError as error:
            message = f"port {port_number} cannot be used on localhost: {cause(error)}"
            way_out = "name another with --port, or end the process that uses it (ss -ltnp)"
            yield Finding("port", "failure", message, way_out)
            return
        free_port = listener.getsockname()[1]
    message = f"{free_port} is free on localhost"
    yield Finding(
        "port",
        "ok",
        message if port_number else f"there are free ports on localhost, such as {free_port}",
    )
