"""Files of earlier versions can be read; tests/samples has a folder for each version.

Those of 0.1.0 were written by commit 50eead6 with the demo model and seed 7: a clip and its
metadata, the snapshot of a rendering that was killed after step 6 of 12, and the latents of one
that was terminated while it was decoded.
"""

from __future__ import annotations

import json
from importlib.metadata import version
from pathlib import Path
from typing import Any

import imageio.v3 as iio
import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from longtake.cli import main as cli
from longtake.configs.request import ResolvedRequest

SAMPLES = Path(__file__).parents[1] / "samples" / "0.1.0"
LIBRARIES = ("torch", "diffusers", "transformers")
PROMPT = "a red circle moves up"
SHORT = ("--num-frames", 9, "--num-inference-steps", 12)
SMALL_TILES = ("--decode-tile-size", 4, 32, 32, "--decode-tile-stride", 4, 16, 16)


def generate(output: Path, *options: object) -> None:
    """Render the prompt and seed of the samples on the CPU."""
    arguments = [PROMPT, "--seed", 7, "--device", "cpu", "-o", output, *options]
    assert cli.main(["generate", *map(str, arguments)]) == 0


def copy_of(name: str, folder: Path) -> Path:
    """A sample as the installed libraries would have written it; its tensors are unchanged.

    A rendering is not resumed with other versions of the libraries, by design: the samples shall
    outlive an update of those.
    """
    with safe_open(SAMPLES / name, "numpy") as file:
        ((key, text),) = file.metadata().items()
    header = json.loads(text)
    for library in LIBRARIES:
        header["identity"]["versions"][library] = version(library)
    path = folder / name
    save_file(load_file(SAMPLES / name), path, {key: json.dumps(header)})
    return path


def test_metadata_renders_the_same_video(tmp_path: Path) -> None:
    again = tmp_path / "again.mp4"
    config = SAMPLES / "clip.mp4.json"
    assert cli.main(["generate", "--config", str(config), "-o", str(again), "--quiet"]) == 0
    earlier, metadata = (
        json.loads(path.read_text()) for path in (config, again.with_name("again.mp4.json"))
    )
    added = metadata["request"].keys() - earlier["request"].keys()
    later = {name: ResolvedRequest.model_fields[name].default for name in added}
    assert metadata["request"] == {**earlier["request"], **later}
    before = earlier["engine"]
    assert before["parallel"].pop("shard_weights") is False  # the name of --weights split then
    later = {name: None for name in metadata["engine"].keys() - before.keys()}
    places = {"weights": "resident", "text_weights": "resident"}
    assert metadata["engine"] == {**before, **later, **places}
    frames, expected = (iio.imread(path).astype(int) for path in (again, SAMPLES / "clip.mp4"))
    np.testing.assert_allclose(frames, expected, rtol=0, atol=3)  # other CPUs round otherwise


def test_snapshot_is_resumed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    snapshot = copy_of("interrupted.snapshot.safetensors", tmp_path)
    output = tmp_path / "interrupted.npy"
    generate(output, *SHORT, "--resume")
    assert capsys.readouterr().err.splitlines()[0] == "resumes after step 6 of 12"
    assert not snapshot.exists()
    generate(tmp_path / "whole.npy", *SHORT)
    np.testing.assert_allclose(np.load(output), np.load(tmp_path / "whole.npy"), rtol=0, atol=1e-4)


def test_kept_latents_are_decoded(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """``decode`` and ``generate --resume`` give the same frames."""
    latents = copy_of("decoding.latents.safetensors", tmp_path)
    decoded, resumed = tmp_path / "decoded.npy", tmp_path / "decoding.npy"
    assert cli.main(["decode", str(latents), "--device", "cpu", "-o", str(decoded)]) == 0
    metadata: dict[str, Any] = json.loads((tmp_path / "decoded.npy.json").read_text())
    assert (metadata["request"]["prompt"], metadata["request"]["seed"]) == (PROMPT, 7)
    capsys.readouterr()
    generate(resumed, *SMALL_TILES, "--resume")
    assert capsys.readouterr().err.splitlines()[0] == f"decodes the latents in {latents}"
    assert not latents.exists()
    np.testing.assert_array_equal(np.load(resumed), np.load(decoded))
    assert np.load(decoded).shape == (17, 64, 64, 3)
