"""Checks of what every machine needs: Python, libraries, memory, disks, encoders, a port."""

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

from longtake.engine.tools.doctor.finding import Asked, Finding, gib
from longtake.files.atomic import cause

OLDEST_PYTHON = (3, 10)
MEMORY_BYTES_A_RANK = 2**30
"""About what the libraries take by themselves."""
FREE_DISK_BYTES = 5 * 2**30
SHARED_MEMORY_BYTES = 2**30
SHARED_MEMORY = Path("/dev/shm")

_NAMED = ("torch", "diffusers", "transformers")
_NUM_FRAMES = 8


def python(asked: Asked) -> Iterator[Finding]:
    """Its version."""
    version, oldest = ".".join(map(str, sys.version_info[:3])), ".".join(map(str, OLDEST_PYTHON))
    if sys.version_info < OLDEST_PYTHON:
        way_out = f"make an environment with Python {oldest} or later"
        yield Finding("python", "failure", f"{version} is older than {oldest}", way_out)
    else:
        yield Finding("python", "ok", version)


def libraries(asked: Asked) -> Iterator[Finding]:
    """Each library that longtake asks for, against the oldest version that it asks for."""
    versions: dict[str, str] = {}
    misfits: dict[str, str] = {}
    for name, oldest in _required():
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            misfits[f"{name}>={oldest}"] = f"{name} is not installed"
            continue
        if _numbers(versions[name]) < _numbers(oldest):
            misfits[f"{name}>={oldest}"] = f"{name} {versions[name]} is older than {oldest}"
    if misfits:
        way_out = "pip install " + " ".join(f"'{wanted}'" for wanted in misfits)
        yield Finding("libraries", "failure", "; ".join(misfits.values()), way_out)
        return
    named = ", ".join(f"{name} {versions.pop(name)}" for name in _NAMED if name in versions)
    yield Finding("libraries", "ok", f"{named}, and {len(versions)} more")


def _required() -> list[tuple[str, str]]:
    """The names of the libraries that longtake was installed with, and their oldest versions."""
    found = []
    for line in importlib.metadata.requires("longtake") or ():
        requirement = re.fullmatch(r"([\w.-]+)>=([\w.]+)", line)
        if requirement:  # else it is of an extra
            found.append((requirement[1], requirement[2]))
    return found


def _numbers(version: str) -> tuple[int, ...]:
    """2.13.0+cpu as (2, 13, 0)."""
    return tuple(map(int, re.findall(r"\d+", re.split(r"[^\d.]", version)[0])))


def memory(asked: Asked) -> Iterator[Finding]:
    """What the host, or this container, has left."""
    import torch

    from longtake.pipelines.memory import free_bytes

    free, ranks = free_bytes(torch.device("cpu")), asked.engine.devices
    message = f"{gib(free)} free"
    if free < ranks * MEMORY_BYTES_A_RANK:
        message += f", and devices={ranks} needs {gib(ranks * MEMORY_BYTES_A_RANK)} at least"
        way_out = "end other programs, raise the container's limit, or ask for fewer --devices"
        yield Finding("memory", "warning", message, way_out)
    else:
        yield Finding("memory", "ok", message)


def shared_memory(asked: Asked) -> Iterator[Finding]:
    """Ranks on GPUs of one machine hand data to each other through it, where P2P cannot."""
    total = shutil.disk_usage(SHARED_MEMORY).total if SHARED_MEMORY.is_dir() else 0
    message = f"{gib(total)} in {SHARED_MEMORY}"
    if asked.num_gpus > 1 and total < SHARED_MEMORY_BYTES:
        message += f", and NCCL needs up to {gib(SHARED_MEMORY_BYTES)}"
        yield Finding(
            "shared memory", "warning", message, "docker run --shm-size=8g, or --ipc=host"
        )
    else:
        yield Finding("shared memory", "ok", message)


def folder(asked: Asked) -> Iterator[Finding]:
    """Where videos would go."""
    path = Path(os.path.expanduser(asked.doctor.folder))
    if not path.is_dir():
        message = f"{path} is no folder" if path.exists() else f"there is no folder {path}"
        yield Finding("folder", "failure", message, "make it, or name another with --folder")
        return
    refusal = _refuses_writing(path)
    if refusal:
        message = f"{path} cannot be written to: {refusal}"
        yield Finding("folder", "failure", message, "name another with --folder, or make room")
        return
    free = shutil.disk_usage(path).free
    message = f"{path.resolve()} can be written to, {gib(free)} free"
    if free < FREE_DISK_BYTES:
        message += f", less than {gib(FREE_DISK_BYTES)}"
        yield Finding("folder", "warning", message, "make room, or name another with --folder")
    else:
        yield Finding("folder", "ok", message)


def hub_cache(asked: Asked) -> Iterator[Finding]:
    """Where models of the hub are kept; models in folders do without."""
    from huggingface_hub import constants

    path = Path(constants.HF_HUB_CACHE)
    there = next(each for each in (path, *path.parents) if each.exists())
    refusal = _refuses_writing(there)
    if refusal:
        message = f"{path} cannot be written to: {refusal}: no model can be had from the hub"
        yield Finding("hub cache", "warning", message, "name another folder in HF_HUB_CACHE")
    else:
        free = shutil.disk_usage(there).free
        yield Finding("hub cache", "ok", f"{path} can be written to, {gib(free)} free")


def _refuses_writing(path: Path) -> str:
    """Why nothing can be written in a folder; empty if something was."""
    try:
        with tempfile.TemporaryFile(dir=path) as file:
            file.write(bytes(4096))
            file.flush()
    except OSError as error:
        return cause(error)
    return ""


def encoder(suffix: str, asked: Asked) -> Iterator[Finding]:
    """Write a clip as a rendering would, and read it again."""
    import imageio.v3 as iio
    import numpy as np

    from longtake.engine.media.frame_writers import WRITERS

    with tempfile.TemporaryDirectory(prefix="longtake-") as temporary:
        path = Path(temporary) / f"clip{suffix}"
        writer = WRITERS[suffix](path, (_NUM_FRAMES, 32, 48), 24.0)
        try:
            for index in range(_NUM_FRAMES):
                writer.write(index, np.full((32, 48, 3), index / _NUM_FRAMES, np.float32))
            writer.close()
        finally:
            writer.discard()
        read = len(iio.imread(path))
    message = f"{_NUM_FRAMES} frames written, {read} read again"
    if read != _NUM_FRAMES:
        way_out = "pip install --force-reinstall av imageio pillow"
        yield Finding(f"encoder {suffix}", "failure", message, way_out)
    else:
        yield Finding(f"encoder {suffix}", "ok", message)


def port(asked: Asked) -> Iterator[Finding]:
    """Take a port of this machine's own, for a moment."""
    wanted = asked.doctor.port
    with socket.socket() as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as servers do
        try:
            listener.bind(("127.0.0.1", wanted))
            listener.listen()
        except OSError as error:
            message = f"port {wanted} cannot be had on localhost: {cause(error)}"
            way_out = "name another with --port, or end what holds it (ss -ltnp)"
            yield Finding("port", "failure", message, way_out)
            return
        given = listener.getsockname()[1]
    message = f"{given} is free on localhost"
    yield Finding("port", "ok", message if wanted else f"there are some on localhost, {given} say")
