"""Requests with a picture: their fields, and the size of the video."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from longtake.configs.engine import EngineConfig
from longtake.configs.models import defaults_of
from longtake.configs.request import ResolvedRequest, VideoRequest
from longtake.engine.media.identity import Identity
from longtake.engine.media.pictures.picture import CheckedPicture
from longtake.engine.resolve.request import resolve, resolve_decode
from longtake.errors import ModelError, RequestError, one_line
from longtake.pipelines import registry
from longtake.pipelines.loading.checkpoint import Checkpoint
from longtake.pipelines.models.hunyuan_video.defaults import HunyuanVideoDefaults
from longtake.pipelines.models.hunyuan_video.options import HunyuanVideoOptions
from longtake.pipelines.models.hunyuan_video.spec import HunyuanVideoSpec
from tests import tiny
from tests.unit.engine.resolve.test_request import SPEC

RELEASED = replace(
    SPEC,
    defaults=defaults_of("hunyuan-video-i2v", Path("nowhere"), HunyuanVideoDefaults()),
    options=HunyuanVideoOptions,
    pictures={"image": "required"},
    image_tokens=144,
)
OLDER = replace(
    SPEC,
    options=HunyuanVideoOptions,
    pictures={"image": "required"},
    image_tokens=288,
    dropped_frames=4,
)
SHA256 = "0" * 64


def resolved(spec: Any = RELEASED, size: tuple[int, int] = (720, 1280), **changes: Any) -> Any:
    """A resolved request with a picture of this height and width."""
    pictures = {"image": CheckedPicture(size, SHA256)}
    return resolve(VideoRequest(prompt="a", image=Path("a.png"), **changes), spec, pictures)


def test_defaults() -> None:
    found: ResolvedRequest = resolved()
    assert (found.resize_mode, found.flow_shift) == ("crop", 7.0)
    assert HunyuanVideoOptions.of(found).i2v_mode == "stable"
    assert found.image == Path("a.png").absolute() and found.image_sha256 == SHA256
    again = resolve(VideoRequest.model_validate_json(found.model_dump_json()), RELEASED)
    assert (HunyuanVideoOptions.of(again).i2v_mode, again.flow_shift) == ("stable", 7.0)


def test_the_dynamic_mode_has_another_shift() -> None:
    assert resolved(i2v_mode="dynamic").flow_shift == 17.0
    assert resolved(i2v_mode="dynamic", flow_shift=9).flow_shift == 9
    assert resolved(i2v_mode="stable", flow_shift=9).flow_shift == 9


def test_a_last_picture_is_identified_and_the_first_gives_the_size() -> None:
    spec = replace(RELEASED, pictures={"image": "required", "last_image": "optional"})
    pictures = {"image": CheckedPicture((720, 1280), SHA256)}
    request = VideoRequest(prompt="a", image="a.png", last_image="b.png", seed=1)
    alone = resolve(request, spec, pictures)
    pictures["last_image"] = CheckedPicture((1280, 720), "1" * 64)
    both = resolve(request, spec, pictures)
    assert (both.height, both.width) == (alone.height, alone.width) == (720, 1280)
    assert both.last_image == Path("b.png").absolute() and both.last_image_sha256 == "1" * 64
    assert both.picture_paths.keys() == {"image", "last_image"}
    with pytest.raises(RequestError, match="num_frames=1 with image and last_image"):
        resolve(request.model_copy(update={"num_frames": 1}), spec, pictures)
    identities = [Identity.of(each, EngineConfig(), "model") for each in (alone, both)]
    assert "last_image_sha256=" in identities[0].difference_from(identities[1])
    moved = both.model_copy(update={"last_image": Path("/c.png")})
    assert not Identity.of(moved, EngineConfig(), "model").difference_from(identities[1])


@pytest.mark.parametrize(
    ("picture", "size"),
    [
        ((1080, 1920), (720, 1280)),
        ((3000, 4000), (832, 1104)),
        ((4000, 3000), (1104, 832)),
        ((1920, 1080), (1280, 720)),
        ((1024, 1024), (960, 960)),
        ((576, 1024), (544, 960)),
        ((720, 720), (720, 720)),
        ((360, 640), (352, 640)),
        ((480, 640), (416, 544)),
        ((1, 1), (480, 480)),
        ((300, 6000), (720, 1280)),
        ((6000, 300), (1280, 720)),
    ],
)
def test_a_picture_selects_the_nearest_size_of_the_model(
    picture: tuple[int, int], size: tuple[int, int]
) -> None:
    """The resolution by number of pixels, the size by aspect ratio."""
    found = resolved(size=picture)
    assert (found.height, found.width) == size


def test_requested_sides_are_kept() -> None:
    found = resolved(size=(100, 300), height=320, width=320)
    assert (found.height, found.width) == (320, 320)
    found = resolved(size=(100, 300), height=320)
    assert (found.height, found.width) == (320, 960)
    found = resolved(size=(100, 300), width=320)
    assert (found.height, found.width) == (112, 320)
    found = resolved(size=(1, 4000), width=64)
    assert (found.height, found.width) == (16, 64)
    found = resolved(size=(1, 4000), height=64)  # 4:1 at most
    assert (found.height, found.width) == (64, 256)
    found = resolved(size=(4000, 1), height=64)
    assert (found.height, found.width) == (64, 16)
    with pytest.raises(RequestError, match="height=100 must be a multiple of 16"):
        resolved(size=(100, 300), height=100)


@pytest.mark.parametrize(
    ("picture", "size"),
    [
        ((1080, 1920), (720, 1280)),
        ((1920, 1080), (1280, 720)),
        ((50, 50), (960, 960)),
        ((300, 200), (1168, 784)),
        ((1, 40_000), (480, 1920)),
    ],
)
def test_sizes_of_a_model_that_names_none(picture: tuple[int, int], size: tuple[int, int]) -> None:
    """The default's number of pixels in the picture's aspect ratio, 4:1 at most."""
    found = resolved(OLDER, size=picture)
    assert (found.height, found.width) == size


def test_the_older_model_drops_frames() -> None:
    with pytest.raises(RequestError, match="num_frames=1 with a model that drops the first 4"):
        resolved(OLDER, num_frames=1)
    assert resolved(OLDER, num_frames=5).num_frames == 5
    with pytest.raises(RequestError, match="drops the first 4"):
        resolve_decode(VideoRequest(prompt="a"), (1, 16, 1, 4, 4), OLDER)


@pytest.mark.parametrize(
    "changes",
    [
        dict(image="a.png"),
        dict(last_image="b.png"),
        dict(resize_mode="pad"),
        dict(image_sha256=SHA256),
    ],
)
def test_text_to_video_takes_no_picture(changes: dict[str, Any]) -> None:
    with pytest.raises(RequestError, match="with a model that takes no picture: leave it out"):
        resolve(VideoRequest(prompt="a", **changes), SPEC)


def test_options_and_pictures_of_other_models_are_refused_by_name() -> None:
    spec = replace(SPEC, model="some/model", family="HunyuanVideo")
    text = r"i2v_mode=dynamic is not an option of some/model \(HunyuanVideo\): leave it out"
    with pytest.raises(RequestError, match=text):
        resolve(VideoRequest(prompt="a", i2v_mode="dynamic"), spec)
    with pytest.raises(RequestError, match="last_image='b.png' with a model that takes image:"):
        resolved(last_image="b.png")


@pytest.mark.parametrize(
    ("field", "value", "rule"),
    [
        ("image", 3, "must be a path"),
        ("image", True, "must not be true or false"),
        ("i2v_mode", "still", "stable or dynamic"),
        ("resize_mode", "fit", "crop, pad or stretch"),
        ("image_sha256", "abc", "64 hexadecimal digits"),
    ],
)
def test_values_out_of_range_are_refused(field: str, value: Any, rule: str) -> None:
    with pytest.raises(RequestError) as caught:
        VideoRequest(**{"prompt": "a", field: value})
    assert rule in one_line(caught.value)


def test_sizes_of_a_preset_are_sizes_of_its_model() -> None:
    spec = registry.inspect(Checkpoint.open("hunyuan-video-i2v", configs_only=True), weights=False)
    assert isinstance(spec, HunyuanVideoSpec) and spec.image_tokens == 144 - 4
    assert spec.pictures == {"image": "required"}
    sizes = [size for each in spec.defaults.sizes.values() for size in each]
    assert len(sizes) == 15 and set(spec.defaults.sizes) == {"720p", "540p", "360p"}
    assert all(side % spec.size_multiple == 0 for size in sizes for side in size)
    assert HunyuanVideoDefaults().sizes == {}


# Models whose files do not fit together.


@pytest.mark.parametrize(
    ("file", "changes", "text"),
    [
        (
            "transformer/config.json",
            {"image_condition_type": None},
            "must name HunyuanVideoPipeline",
        ),
        ("transformer/config.json", {"image_condition_type": "else"}, "image_condition_type"),
        ("transformer/config.json", {"patch_size_t": 2}, "token_replace needs patch_size_t=1"),
        ("transformer/config.json", {"in_channels": 9}, "not of the same model"),
        ("model_index.json", {"_class_name": "HunyuanVideoPipeline"}, "text_encoder of class"),
        ("model_index.json", {"text_encoder": ["transformers", "LlamaModel"]}, "LlavaForCond"),
        ("text_encoder/config.json", {"vision_config": {"patch_size": 0}}, "patch_size"),
        ("image_processor/preprocessor_config.json", None, "is missing"),
    ],
)
def test_inconsistent_models_are_refused(
    animators: dict[str, str], tmp_path: Path, file: str, changes: Any, text: str
) -> None:
    folder = tiny.changed(Path(animators["token_replace"]), tmp_path / "model", file, changes)
    with pytest.raises(ModelError, match=text) as caught:
        registry.inspect(Checkpoint.open(str(folder)))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("sizes", "text"),
    [("{720p: []}", "is not a file of model defaults"), ("{a: [[30, 32]]}", "multiples of 16")],
)
def test_invalid_sizes_of_a_model_are_refused(
    animators: dict[str, str], tmp_path: Path, sizes: str, text: str
) -> None:
    folder = tiny.changed(Path(animators["token_replace"]), tmp_path / "m", "model_index.json", {})
    (folder / "longtake.yaml").write_text(f"sizes: {sizes}\n")
    with pytest.raises(ModelError, match=text):
        registry.inspect(Checkpoint.open(str(folder)))


def test_a_conditioned_transformer_in_a_text_to_video_pipeline(model: str, tmp_path: Path) -> None:
    changes = {"image_condition_type": "token_replace"}
    folder = tiny.changed(Path(model), tmp_path / "model", "transformer/config.json", changes)
    with pytest.raises(ModelError, match="must name HunyuanVideoImageToVideoPipeline"):
        registry.inspect(Checkpoint.open(str(folder)))
