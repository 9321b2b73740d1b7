"""Model families of other packages: found by entry points, merged into requests, or left out."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from pydantic import ValidationError

from longtake.configs.families import installed_families
from longtake.configs.request import CommonRendering, ResolvedRequest, VideoRequest
from longtake.pipelines.models.hunyuan_video.options import (
    HunyuanVideoOptions,
    TextToVideoOptions,
)
from longtake.pipelines.models.wan.options import WanExpertsOptions
from tests.rendering import request

FAMILY = """
from longtake.configs.families import ModelFamily
from longtake.configs.families import FamilyOptions

class Options(FamilyOptions):
    {option} = None

FAMILY = ModelFamily(
    name="{name}",
    title="{title}",
    pipeline_classes=({pipeline!r},),
    options="{name}:Options",
    inspect="{name}:inspect",
    pipeline="{name}:load",
    codec="{name}:load_codec",
)
"""


def install(folder: Path, name: str, content: str) -> None:
    """Install a package of one module with an entry point."""
    (folder / f"{name}.py").write_text(content)
    info = folder / f"{name}-1.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1\n")
    (info / "entry_points.txt").write_text(f"[longtake.families]\n{name} = {name}:FAMILY\n")


def family(name: str, option: str, pipeline: str = "") -> str:
    """The module of a family with one option."""
    title = name.capitalize()
    return FAMILY.format(
        name=name, title=title, option=option, pipeline=pipeline or f"{title}Pipeline"
    )


def run(folder: Path, *arguments: str, text: str = "") -> subprocess.CompletedProcess[str]:
    """Run python with the packages in a folder installed."""
    return subprocess.run(
        [sys.executable, *arguments],
        env={**os.environ, "PYTHONPATH": str(folder)},
        input=text,
        capture_output=True,
        text=True,
        timeout=60,
    )


def test_longtakes_own_families_are_installed() -> None:
    labels = {name: each.label for name, each in installed_families().items()}
    assert {"hunyuan_video": "HunyuanVideo", "wan": "Wan"}.items() <= labels.items()
    assert not VideoRequest.model_fields.keys() - (
        HunyuanVideoOptions.model_fields.keys()
        | WanExpertsOptions.model_fields.keys()
        | CommonRendering.model_fields.keys()
        | {"size", "resolution", "aspect_ratio", "seconds"}
    ), "options of families that this test does not know: add them"


def test_options_are_read_from_a_request() -> None:
    request = VideoRequest(prompt="a", true_cfg_scale=2, i2v_mode="dynamic")
    assert HunyuanVideoOptions.of(request).i2v_mode == "dynamic"
    assert TextToVideoOptions.of(request).model_dump() == {
        "true_cfg_scale": 2,
        "prompt_template": None,
    }


def test_options_of_another_package_are_fields_and_flags(tmp_path: Path) -> None:
    install(tmp_path, "toy", family("toy", "wobble: float | None"))
    code = "from longtake.configs.request import VideoRequest as V; print(V(prompt='a', wobble=2))"
    found = run(tmp_path, "-c", code)
    assert "wobble=2.0" in found.stdout and found.stderr == ""
    found = run(tmp_path, "-m", "longtake", "generate", "--help")
    assert "--wobble NUMBER" in found.stdout and "wobble; Toy only" in found.stdout
    found = run(tmp_path, "-m", "longtake", "generate", "a cat", "--wobble", "3")
    assert found.returncode == 2
    assert found.stderr == (
        "longtake: wobble=3.0 is not an option of demo (HunyuanVideo): leave it out\n"
    )


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("import no_such_module", "No module named 'no_such_module'"),
        ("FAMILY = 3", "broken:FAMILY is no ModelFamily"),
        (family("broken", "wobble: float | None").replace("= None", "= 1"), "other than None"),
        (family("broken", "wobble: float | None").replace(":Options", ":Opt"), "attribute 'Opt'"),
    ],
)
def test_a_family_that_cannot_be_imported_is_left_out(
    tmp_path: Path, content: str, reason: str
) -> None:
    install(tmp_path, "broken", content)
    found = run(tmp_path, "-m", "longtake", "version")
    assert found.returncode == 0
    (line,) = found.stderr.splitlines()
    assert line.startswith("the model family broken (broken:FAMILY) is left out, since it cannot")
    assert reason in line


@pytest.mark.parametrize(
    ("option", "pipeline", "text"),
    [
        (
            "true_cfg_scale: str | None",
            "",
            "true_cfg_scale is an option of two model families, HunyuanVideo and Other, with "
            "different types: uninstall one of them",
        ),
        (
            "wobble: str | None",
            "HunyuanVideoPipeline",
            "HunyuanVideoPipeline is claimed by two model families, HunyuanVideo "
            "(longtake.pipelines.models.hunyuan_video.spec:inspect) and Other (other:inspect): "
            "uninstall one of them",
        ),
        (
            "guidance_scale: float | None",
            "",
            "guidance_scale of the model family Other is an option of longtake itself: name it "
            "otherwise, or uninstall the family",
        ),
        (
            "devices: int | None",
            "",
            "devices of the model family Other is an option of longtake itself: name it "
            "otherwise, or uninstall the family",
        ),
    ],
)
def test_families_in_conflict_are_refused(
    tmp_path: Path, option: str, pipeline: str, text: str
) -> None:
    install(tmp_path, "other", family("other", option, pipeline))
    found = run(tmp_path, "-m", "longtake", "version")
    assert (found.returncode, found.stderr) == (2, f"longtake: {text}\n")


def test_records_outlive_a_family(tmp_path: Path) -> None:
    """A request that was recorded while another family was installed is read without it."""
    install(tmp_path, "toy", family("toy", "wobble: float | None"))
    code = (
        "from longtake.configs.request import ResolvedRequest as R\n"
        "import sys; values = sys.stdin.read()\n"
        "print(R.model_validate_json(values).model_dump_json())\n"
        "print(R.model_validate_json(values).model_copy(update={'wobble': 2}).model_dump_json())"
    )
    own = request(prompt="red")
    found = run(tmp_path, "-c", code, text=own.model_dump_json())
    recorded, wobbling = found.stdout.splitlines()
    assert ResolvedRequest.model_validate_json(recorded) == own
    assert recorded == own.model_dump_json()
    with pytest.raises(ValidationError, match="wobble"):
        ResolvedRequest.model_validate_json(wobbling)


def test_requests_are_recorded_as_by_earlier_versions() -> None:
    """Text of version 0.1, from which fingerprints of jobs in its queues were computed."""
    earlier = (
        '{"fps":null,"decode":null,"decode_tile_size":null,"decode_tile_stride":null,'
        '"prompt":"a","negative_prompt":null,"image":null,"image_sha256":null,"i2v_mode":null,'
        '"resize_mode":null,"height":64,"width":null,"num_frames":null,'
        '"num_inference_steps":null,"sigmas":[0.5],"guidance_scale":null,"true_cfg_scale":1.0,'
        '"flow_shift":null,"seed":null,"num_videos":1,"prompt_template":null,'
        '"max_sequence_length":null,"output_type":"frames"}'
    )
    request = VideoRequest(prompt="a", height=64, sigmas=(0.5,))
    assert json.dumps(request.as_recorded(), separators=(",", ":")) == earlier
    assert VideoRequest.model_validate_json(earlier).as_recorded() == request.as_recorded()
    assert VideoRequest(prompt="a", size="64x64").as_recorded()["size"] == "64x64"
