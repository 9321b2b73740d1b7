"""Checks that the same frames always give the same file, whatever uninitialised memory holds.

``python -m tests.encodes`` encodes videos many times, in one process and in several. It takes some
ten minutes.
"""

from __future__ import annotations

import argparse
import ctypes
import hashlib
import os
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import numpy.typing as npt

from longtake.engine.media.frame_writers import WRITERS, VideoHeader

SUFFIXES = (".mp4", ".webm")
SIZES = [
    *((16, 16), (17, 33), (19, 23), (31, 33), (47, 65), (48, 64), (63, 95), (64, 64), (90, 150)),
    *((96, 160), (97, 161), (144, 176), (145, 177), (256, 256), (256, 432), (353, 641)),
    *((16, 1280), (1280, 16), (17, 1279), (480, 848), (720, 1280)),
]
"""Height and width."""
_DIRT_BYTES = 2**22


def moving_frames(num_frames: int, height: int, width: int) -> npt.NDArray[np.float32]:
    """A textured picture that moves slowly, so that the encoder searches for motion."""
    rng = np.random.default_rng(0)
    height_px, width_px = height + num_frames, width + 2 * num_frames
    coarse = rng.random((height_px // 8 + 1, width_px // 8 + 1, 3), dtype=np.float32)
    texture = rng.random((height_px, width_px, 3), dtype=np.float32)
    blocks = np.kron(coarse, np.ones((8, 8, 1), np.float32))[:height_px, :width_px]
    large = blocks * 0.8 + texture * 0.2
    return np.stack([large[at : at + height, 2 * at : 2 * at + width] for at in range(num_frames)])


def dirty_heap(rng: random.Random) -> None:
    """Fill memory with random bytes and free it; later allocations get it unchanged."""
    libc = ctypes.CDLL(None)
    libc.malloc.restype = ctypes.c_void_p
    libc.malloc.argtypes = [ctypes.c_size_t]
    libc.free.argtypes = [ctypes.c_void_p]
    addresses, total = [], 0
    while total < _DIRT_BYTES:
        size = int(2 ** rng.uniform(4, 17))
        address = libc.malloc(size)
        ctypes.memset(address, rng.randrange(256), size)
        addresses.append(address)
        total += size
    rng.shuffle(addresses)
    for address in addresses:
        libc.free(address)


def encoded(path: Path, frames: npt.NDArray[np.float32], fps: float = 24.0) -> bytes:
    """The bytes of the file that the frames are encoded to."""
    writer = WRITERS[path.suffix](path, VideoHeader(frames.shape[:3], fps))
    for index, frame in enumerate(frames):
        writer.write(index, frame)
    writer.close()
    return path.read_bytes()


def digests(suffix: str, size: tuple[int, int], times: int, seed: int) -> set[str]:
    """SHA-256 of all files that the same frames give."""
    rng = random.Random(seed)
    frames = moving_frames(17 if max(size) < 700 else 9, *size)
    found = set()
    with tempfile.TemporaryDirectory() as folder:
        for _ in range(times):
            dirty_heap(rng)
            found.add(hashlib.sha256(encoded(Path(folder) / f"a{suffix}", frames)).hexdigest())
    return found


def _in_another_process(suffix: str, size: tuple[int, int], number: int) -> set[str]:
    command = [sys.executable, "-m", "tests.encodes", "--one", suffix, *map(str, size)]
    environment = {**os.environ, "MALLOC_PERTURB_": str(number * 23 % 255 + 1)}
    done = subprocess.run(command, env=environment, check=True, capture_output=True, text=True)
    return set(done.stdout.split())


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--times", type=int, default=50)
    parser.add_argument("--processes", type=int, default=10)
    parser.add_argument("--one", nargs=3, metavar=("SUFFIX", "HEIGHT", "WIDTH"))
    options = parser.parse_args()
    if options.one:
        suffix, *size = options.one
        print(*digests(suffix, (int(size[0]), int(size[1])), 1, os.getpid()))
        return 0
    max_digests = 0
    for size in SIZES:
        for suffix in SUFFIXES:
            start = time.perf_counter()
            found = digests(suffix, size, options.times, seed=1)
            for number in range(options.processes):
                found |= _in_another_process(suffix, size, number)
            max_digests = max(max_digests, len(found))
            name = f"{size[0]}x{size[1]}{suffix}"
            print(f"{name}: {len(found)} digests, {time.perf_counter() - start:.1f} s", flush=True)
    return int(max_digests != 1)


if __name__ == "__main__":
    sys.exit(main())
