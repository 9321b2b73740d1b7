"""Renders a dozen requests with the demo models, and prints a digest of the frames of each.

Two commits render the same frames, bit for bit, if both print the same on one machine:

python -m benchmarks.digests > after.txt
"""

from __future__ import annotations

import hashlib
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from PIL import Image

PICTURE = "PICTURE"
"""Stands for the path of a picture of noise."""

_GUIDED = "--true-cfg-scale 3 --negative-prompt blue"
_ANIMATED = f"--model demo-i2v --image {PICTURE}"
REQUESTS = {
    "one rank": "--num-inference-steps 6",
    "ulysses 2": "--num-inference-steps 6 --devices 2",
    "ring 2": "--num-inference-steps 6 --devices 2 --ring-degree 2",
    "3 ranks": "--num-inference-steps 4 --devices 3 --num-frames 9 --height 48",
    "true CFG": f"--num-inference-steps 4 {_GUIDED}",
    "cfg 2": f"--num-inference-steps 4 {_GUIDED} --devices 2 --cfg-degree 2",
    "two videos, whole": "--num-inference-steps 3 --num-videos 2 --decode whole",
    "bfloat16": "--num-inference-steps 3 --dtype bfloat16",
    "split weights": "--num-inference-steps 3 --devices 2 --weights split",
    "picture": f"{_ANIMATED} --num-inference-steps 4",
    "picture, dynamic, 2 ranks": f"{_ANIMATED} --num-inference-steps 4 --devices 2"
    " --i2v-mode dynamic",
    "picture, true CFG": f"{_ANIMATED} --num-inference-steps 3 --resize-mode pad {_GUIDED}",
    "sigmas, framewise": "--num-inference-steps 3 --sigmas 1.0 0.7 0.3 --decode framewise",
}
"""Options of ``longtake generate``, by name."""


def digest(options: str, folder: Path) -> str:
    """SHA-256 of all frames that a request renders."""
    picture = folder / "picture.png"
    pixels = np.random.default_rng(1).integers(0, 256, (48, 80, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(picture)
    arguments = [str(picture) if each == PICTURE else each for each in options.split()]
    command = [sys.executable, "-m", "longtake", "generate", "a red circle moving right"]
    command += ["--seed", "5", "--quiet", "-o", str(folder / "video.npy"), *arguments]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    content = b"".join(path.read_bytes() for path in sorted(folder.glob("video*.npy")))
    return hashlib.sha256(content).hexdigest()


def main() -> None:
    """Print a line for each request."""
    for name, options in REQUESTS.items():
        with TemporaryDirectory() as folder:
            print(f"{digest(options, Path(folder))[:32]}  {name}", flush=True)


if __name__ == "__main__":
    main()
