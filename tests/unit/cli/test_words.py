"""Shorthands of sizes, YAML, and the messages of errors."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel, ValidationError
from pydantic_core import _pydantic_core

from longtake.configs.commands.batch import BatchConfig
from longtake.configs.commands.serve import ServeConfig
from longtake.configs.commands.tools import BenchConfig, DoctorConfig, PlanConfig, VerifyConfig
from longtake.configs.commands.training import TrainingConfig
from longtake.configs.engine import EngineConfig
from longtake.configs.fields.sizes import merge_fields
from longtake.configs.hardware import Hardware
from longtake.configs.models import ModelDefaults, defaults_of
from longtake.configs.parallel import ParallelConfig
from longtake.configs.request import DecodeRequest, ResolvedRequest, VideoRequest
from longtake.configs.snapshot import SnapshotConfig
from longtake.configs.yaml_reader import YamlError, read_yaml
from longtake.engine.resolve.request import resolve
from longtake.errors import RequestError, one_line
from longtake.pipelines.models.hunyuan_video.defaults import HunyuanVideoDefaults
from tests.unit.engine.resolve.test_request import SPEC

DECLARED: list[type[BaseModel]] = [
    BatchConfig,
    BenchConfig,
    DecodeRequest,
    DoctorConfig,
    EngineConfig,
    Hardware,
    HunyuanVideoDefaults,
    ModelDefaults,
    ParallelConfig,
    PlanConfig,
    ServeConfig,
    SnapshotConfig,
    TrainingConfig,
    VerifyConfig,
    VideoRequest,
]
PYDANTIC_WORDS = re.compile(
    "Input|should|valid|unable to parse|pydantic|Extra inputs|Field required|greater than|less than"
    "|after validation|pattern"
)
WRONG_VALUES: list[Any] = [
    *(None, True, "", "x", "-1", "1e400", "nan", -1, 0, 1.5, 10**30, float("inf"), b"\xff"),
    *("a\udce9", [], ["x"], [1], [0.5, 0.5], {}, {"x": 1}, {1: 2}, object(), Path("a\udce9")),
    *("9" * 5000, "a" * 200_000, "off", "1:2:3", [[]], ["1", "2", "x"], {"template": 1}),
    {"float32": {"value": -1}},
]


@pytest.mark.parametrize("kind", DECLARED, ids=lambda kind: kind.__name__)
def test_errors_are_not_worded_by_pydantic(kind: type[BaseModel]) -> None:
    """Any wrong value of any field gives one line in longtake's own words."""
    refused = 0
    for name in [*kind.model_fields, "heigth"]:
        for value in WRONG_VALUES:
            try:
                kind.model_validate({name: value})
            except ValidationError as error:
                refused += 1
                text = one_line(error, kind.model_fields)
                assert not PYDANTIC_WORDS.search(
                    re.sub(r"='.*?' |=\".*?\" |<object.*?>", " ", text)
                ), text
                assert "\n" not in text
                assert text.isprintable()
                assert len(text) < 900
    assert refused > len(WRONG_VALUES)


def test_every_declared_rule_has_a_message() -> None:
    """Every type of pydantic error that the fields can raise has a message."""
    kinds = {each["type"] for each in _pydantic_core.list_all_errors()}
    met: set[str] = set()
    for kind in DECLARED:
        for name in kind.model_fields:
            for value in WRONG_VALUES:
                try:
                    kind.model_validate({name: value})
                except ValidationError as error:
                    met |= {each["type"] for each in error.errors()}
                    for each in error.errors():
                        if each["type"] != "extra_forbidden":
                            assert "cannot be used" not in one_line(error), each
    assert met - {"path_type"} <= kinds
    assert {"int_parsing", "string_unicode", "literal_error", "too_short", "model_type"} <= met


def size(**fields: Any) -> tuple[int, int, int]:
    resolved = resolve(VideoRequest(prompt="a", **fields), SPEC)
    assert type(resolved) is ResolvedRequest
    return resolved.width, resolved.height, resolved.num_frames


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        (dict(size="1280x720"), (1280, 720, 129)),
        (dict(size=" 960 × 544 "), (960, 544, 129)),
        (dict(size="960*544"), (960, 544, 129)),
        (dict(resolution="720p"), (1280, 720, 129)),
        (dict(resolution="540P"), (960, 544, 129)),
        (dict(resolution=480), (848, 480, 129)),
        (dict(resolution="1080p"), (1920, 1088, 129)),
        (dict(resolution="720p", aspect_ratio="9:16"), (720, 1280, 129)),
        (dict(resolution="720p", aspect_ratio="1:1"), (720, 720, 129)),
        (dict(resolution="720p", aspect_ratio="2.39:1"), (1728, 720, 129)),
        (dict(aspect_ratio="9:16"), (720, 1280, 129)),
        (dict(aspect_ratio=1), (960, 960, 129)),
        (dict(height=720, aspect_ratio="4:3"), (960, 720, 129)),
        (dict(width=720, aspect_ratio="9/16"), (720, 1280, 129)),
        (dict(seconds=5), (1280, 720, 121)),
        (dict(seconds="5s", fps=16), (1280, 720, 81)),
        (dict(seconds=0.001), (1280, 720, 1)),
    ],
)
def test_shorthands_resolve_to_height_width_and_frames(
    fields: dict[str, Any], expected: tuple[int, int, int]
) -> None:
    assert size(**fields) == expected


def test_sizes_of_the_model_come_first() -> None:
    defaults = defaults_of("hunyuan-video-i2v", Path("/none"), HunyuanVideoDefaults())
    spec = type(SPEC)(**{**vars(SPEC), "defaults": defaults})
    pairs: list[tuple[dict[str, Any], tuple[int, int]]] = [
        (dict(resolution="720p", aspect_ratio="4:3"), (1104, 832)),
        (dict(resolution="540p"), (960, 544)),
        (dict(aspect_ratio="1:1"), (960, 960)),
        (dict(aspect_ratio="2.39:1"), (1488, 624)),  # no size of the model is near
    ]
    for fields, expected in pairs:
        resolved = resolve(VideoRequest(prompt="a", **fields), spec)
        assert (resolved.width, resolved.height) == expected


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        (dict(size="64x64", height=32), "size=64x64 with height=32: leave one of them out"),
        (dict(resolution="720p", width=32), "resolution=720p with width=32: leave one"),
        (dict(aspect_ratio="1:1", height=32, width=64), "aspect_ratio=1:1 with width=64"),
        (dict(seconds=5, num_frames=5), "seconds=5.0 with num_frames=5: leave one"),
        (dict(size="64"), "size='64' must be WIDTHxHEIGHT in pixels, such as 1280x720"),
        (dict(size="0x64"), "size='0x64' must have a width of 1 to 16384"),
        (dict(resolution="64x64"), "must be the shorter side.*: --size takes both sides"),
        (dict(aspect_ratio="16:0"), "aspect_ratio='16:0' must be WIDTH:HEIGHT"),
        (dict(aspect_ratio="100:1"), "must be 1:16 to 16:1"),
        (dict(seconds="soon"), "seconds='soon' must be a number above 0"),
        (dict(heigth=3), "heigth is not an option: perhaps you meant height"),
        (dict(steps=3), "steps is not an option: perhaps you meant num_inference_steps"),
        (dict(decode="tile"), "decode='tile' must be tiled, .*: perhaps you meant tiled"),
        (dict(prompt="a caf\udce9"), r"prompt='a caf\\xe9' is not UTF-8"),
    ],
)
def test_invalid_fields_are_refused(fields: dict[str, Any], words: str) -> None:
    with pytest.raises(RequestError, match=words):
        VideoRequest(**{"prompt": "a", **fields})


def test_a_side_beyond_the_limit_is_refused() -> None:
    with pytest.raises(RequestError, match="longer side would have 262144 pixels, 16384 at most"):
        size(resolution="16384p", aspect_ratio="16:1")


def test_a_flag_overrides_conflicting_fields_of_a_file() -> None:
    file = {"height": 720, "width": 1280, "num_frames": 129}
    assert merge_fields(file, {"size": "64x64"}) == {"num_frames": 129, "size": "64x64"}
    assert merge_fields(file, {"resolution": "480p", "seconds": 2}) == {
        "resolution": "480p",
        "seconds": 2,
    }
    assert merge_fields({"size": "64x32"}, {"height": 48}) == {"width": 64, "height": 48}
    assert merge_fields({"resolution": "720p", "seconds": 1}, {"height": 48, "num_frames": 5}) == {
        "height": 48,
        "num_frames": 5,
    }


def test_yaml_scalars_stay_text() -> None:
    content = (
        "a: off\nb: 12:30\nc: 007\nd: 1.10\ne: 2026-01-01\nf: ~\ng: 'null'\nh: [yes, =, 1e3]\n"
    )
    assert read_yaml(content.encode()) == {
        **{"a": "off", "b": "12:30", "c": "007", "d": "1.10", "e": "2026-01-01"},
        **{"f": None, "g": "null", "h": ["yes", "=", "1e3"]},
    }
    assert read_yaml(b"x: &x {a: 1, b: 2}\ny: {<<: *x, b: 3}")["y"] == {"a": "1", "b": "3"}


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"a: 1\nb: 2\na: 3", "line 3: has a twice"),
        (b"a:\n  b: [", "line 3: is not YAML"),
        (b"a:\n\t- b", "line 2: is not YAML"),
        (b"a: 1\n---\nb: 2", "line 2: starts a second document"),
        (b"a: 1\nb: &x [*x]", "line 2: has .x inside &x"),
        (b"a: !!python/name:os.system x", "line 1: has the tag"),
        (b"a: 1\nb: caf\xe9", "line 2: is not UTF-8"),
        ("a: 1".encode("utf-16"), "line 1: is not UTF-8"),
        (b"a: 1\nb: \0", "line 2: contains"),
        (b"[" * 100_000, "line 1: is nested deeper than 20"),
        (b"a: *none", "line 1: has .none, but no &none"),
        (b"? [1]\n: 2", "line 1: has a key that is not text"),
    ],
)
def test_invalid_yaml_names_its_line(content: bytes, words: str) -> None:
    with pytest.raises(YamlError, match=words):
        read_yaml(content)
