"""Places of weights in files of --config, of this version and of 0.1.0."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from longtake.cli.config_file import ConfigFile
from longtake.configs.engine import EngineConfig
from longtake.errors import RequestError


def merged(path: Path, text: str, **flags: Any) -> dict[str, Any]:
    path.write_text(text)
    return ConfigFile(str(path)).merge(flags)


@pytest.mark.parametrize(
    ("line", "weights"),
    [("weights: disk", "disk"), ("shard_weights: true", "split"), ("shard-weights: no", "auto")],
)
def test_places_in_yaml(tmp_path: Path, line: str, weights: str) -> None:
    path = tmp_path / "options.yaml"
    assert merged(path, f"{line}\nseed: 1\n") == {"weights": weights, "seed": "1"}
    assert merged(path, line, weights="resident") == {"weights": "resident"}
    both = f"{line}\nweights: streamed\n"
    if "shard" in line:
        assert merged(path, both) == {"weights": "streamed"}


def test_what_is_no_switch_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "options.yaml"
    with pytest.raises(RequestError, match=r"options.yaml'.*shard_weights='many' must be true or"):
        merged(path, "shard_weights: many")


@pytest.mark.parametrize("sharded", [True, False, None])
def test_a_video_is_rendered_again_with_weights_placed_for_this_machine(
    tmp_path: Path, sharded: bool | None
) -> None:
    engine = EngineConfig(weights="split", text_weights="disk", devices=2).model_dump(mode="json")
    if sharded is not None:  # as 0.1.0 wrote it
        del engine["weights"], engine["text_weights"]
        engine["parallel"]["shard_weights"] = sharded
    metadata = json.dumps({"request": {"prompt": "a", "seed": 7}, "engine": engine})
    found = merged(tmp_path / "video.json", metadata)
    assert found["devices"] == 2 and found["seed"] == 7
    assert not found.keys() & {"weights", "text_weights", "shard_weights"}
