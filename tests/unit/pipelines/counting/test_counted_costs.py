"""Counted costs against the arithmetic of HunyuanVideo, and the file that keeps them."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest

from longtake.configs.families import installed_families
from longtake.errors import ModelError
from longtake.pipelines import registry
from longtake.pipelines.costs import Work
from longtake.pipelines.counting.cache import CountsFile
from longtake.pipelines.counting.costs import CountedCosts
from longtake.pipelines.counting.counts import Counts
from longtake.pipelines.loading.files import hub
from tests import tiny
from tests.unit.pipelines.counting.planned import (
    SKELETON,
    TEXT_TOKENS,
    checkpoint_of,
    counted,
    plan_of,
    spec_of,
)

VIDEO_TOKENS = {"480p": 33 * 30 * 53, "720p": 33 * 45 * 80}

MODELS = ["hunyuan-video", "hunyuan-video-i2v"]

PASSES = [("hunyuan-video", 2), ("hunyuan-video", 4), ("hunyuan-video-i2v", 2)]
"""Models, and bytes of an element."""

FLOPS = ["linear_flops", "attention_flops", "convolution_flops"]


@pytest.fixture(scope="module")
def released(tmp_path_factory: pytest.TempPathFactory) -> dict[str, CountedCosts]:
    """The released models, counted once for all tests, in seconds."""
    folder = tmp_path_factory.mktemp("counts")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(hub, "cache_folder", lambda name: folder)
        costs = {model: counted(model) for model in MODELS}
        for each in costs.values():
            start = time.process_time()
            each.transformer_pass(1, 1, 2)
            assert time.process_time() - start < 20
    return costs


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of the files of counts."""
    (counts := tmp_path / "counts").mkdir()
    monkeypatch.setattr(hub, "cache_folder", lambda name: counts)
    return counts


# Within 2 % of the arithmetic.


@pytest.mark.parametrize("size", VIDEO_TOKENS)
@pytest.mark.parametrize(("model", "element_size"), PASSES)
def test_operations_of_a_pass(
    released: dict[str, CountedCosts], model: str, size: str, element_size: int
) -> None:
    arithmetic, costs = spec_of(model).costs, released[model]
    assert costs.attention == arithmetic.attention
    assert costs.token_values == arithmetic.token_values
    for ranks in range(1, 9):
        own = -(-(VIDEO_TOKENS[size] + TEXT_TOKENS) // ranks)
        expected = arithmetic.transformer_pass(own, TEXT_TOKENS, element_size)
        found = costs.transformer_pass(own, TEXT_TOKENS, element_size)
        _check_operations(found, expected)
        # attention across ranks copies K and V, which the arithmetic adds and counting does not
        assert 0.85 < found.memory_bytes / expected.memory_bytes < 1.03
        assert 0.8 < found.launches / expected.launches < 1.25


def _check_operations(found: Work, expected: Work) -> None:
    for name in FLOPS:
        assert getattr(found, name) == pytest.approx(getattr(expected, name), rel=0.002), name


@pytest.mark.parametrize("model", MODELS)
def test_parameters(released: dict[str, CountedCosts], model: str) -> None:
    arithmetic, costs = spec_of(model).costs, released[model]
    assert Counter(costs.transformer_shapes) == Counter(arithmetic.transformer_shapes)
    assert costs.block_parameters == arithmetic.block_parameters
    assert costs.non_block_parameters == arithmetic.non_block_parameters
    expected = arithmetic.other_parameters["autoencoder"]
    assert costs.other_parameters["autoencoder"] == expected


@pytest.mark.parametrize(
    ("ulysses", "ring", "head_share"),
    [
        (False, False, 1.0),
        (True, False, 1.0),
        (True, False, 1.25),
        (False, True, 1.0),
        (True, True, 1.0),
    ],
)
@pytest.mark.parametrize(("model", "element_size"), PASSES)
def test_peak_of_a_pass(
    released: dict[str, CountedCosts],
    model: str,
    ulysses: bool,
    ring: bool,
    head_share: float,
    element_size: int,
) -> None:
    for num_tokens in (6000, 50_000, 119_056):
        expected, found = (
            costs.activation_bytes(
                num_tokens, element_size, ulysses=ulysses, ring=ring, head_share=head_share
            )
            for costs in (spec_of(model).costs, released[model])
        )
        assert found == pytest.approx(expected, rel=0.08)


TILES = [(1, 32, 32), (5, 32, 32), (4, 32, 18), (2, 5, 3)]


@pytest.mark.parametrize("element_size", [2, 4])
@pytest.mark.parametrize("shape", TILES, ids=str)
def test_decoding_a_tile(
    released: dict[str, CountedCosts], shape: tuple[int, int, int], element_size: int
) -> None:
    arithmetic, costs = spec_of("hunyuan-video").costs, released["hunyuan-video"]
    expected = arithmetic.tile_decoding(shape, element_size)
    found = costs.tile_decoding(shape, element_size)
    _check_operations(found, expected)
    assert found.memory_bytes == pytest.approx(expected.memory_bytes, rel=0.15)
    assert found.launches == pytest.approx(expected.launches, rel=0.2)
    expected_bytes = arithmetic.tile_bytes(shape, element_size)
    assert costs.tile_bytes(shape, element_size) == pytest.approx(expected_bytes, rel=0.11)


@pytest.mark.parametrize("devices", [1, 5, 8])
def test_a_plan_with_counted_costs(released: dict[str, CountedCosts], devices: int) -> None:
    model = "hunyuan-video"
    expected, found = (
        plan_of(model, costs, devices) for costs in (spec_of(model).costs, released[model])
    )
    assert [each.name for each in found.layouts] == [each.name for each in expected.layouts]
    for one, other in zip(found.layouts, expected.layouts, strict=True):
        assert one.step.seconds == pytest.approx(other.step.seconds, rel=0.01)
        assert one.stages["decode"] == pytest.approx(other.stages["decode"], rel=0.02)
        assert one.step_bytes == other.step_bytes
        assert one.memory.weights == other.memory.weights


def test_the_counts_are_a_polynomial(released: dict[str, CountedCosts]) -> None:
    """A pass of another size, counted itself."""
    costs, counter = released["hunyuan-video"], released["hunyuan-video"]._counter
    found = counter.count_pass((5, 17, 29), 100, 2)
    num_tokens = 5 * 17 * 29 + 100
    assert found.tokens == (num_tokens, 100)
    expected = costs.transformer_pass(num_tokens, 100, 2)
    assert found.work == pytest.approx(expected)


# Text encoders.


def test_text_encoders_of_the_files(model: str, folder: Path) -> None:
    """Without modules of the family, parameters are those of the checkpoint's tensors."""
    arithmetic, costs = spec_of(model).costs, counted(model)
    assert costs.other_parameters == arithmetic.other_parameters
    assert costs.text_streaming_parameters == arithmetic.text_streaming_parameters
    found, expected = (each.text_encoding(24, 4) for each in (costs, arithmetic))
    assert 0 < found.linear_flops < expected.linear_flops  # of the template's tokens as well
    assert 0.5 < found.launches / expected.launches < 2


def test_unknown_text_encoders_are_left_out_and_said(
    released: dict[str, CountedCosts], caplog: pytest.LogCaptureFixture
) -> None:
    costs = released["hunyuan-video"]
    vars(costs).pop("_text_encoders", None)
    with caplog.at_level(logging.WARNING):
        assert costs.other_parameters["text_encoders"] == 0
        assert costs.text_encoding(256, 2) == Work()
    (record,) = caplog.records
    assert "leaves out the text encoders" in record.message
    assert "\n" not in record.message


def test_text_encoders_that_the_family_builds(model: str, folder: Path) -> None:
    arithmetic = spec_of(model).costs
    skeleton = SKELETON.replace("hunyuan_video", "with_text_encoders")
    costs = CountedCosts(checkpoint_of(model), spec_of(model), skeleton)
    assert costs.other_parameters == arithmetic.other_parameters
    assert costs.text_streaming_parameters == arithmetic.text_streaming_parameters
    of_files = counted(model)
    assert costs.text_encoding(24, 4).linear_flops == of_files.text_encoding(24, 4).linear_flops


# The file.


def test_counts_are_read_from_the_file(model: str, folder: Path) -> None:
    first = plan_of(model, counted(model), 4)
    (file,) = folder.iterdir()
    content = file.read_bytes()
    again = counted(model)
    again.__dict__["_counter"] = None  # nothing can be counted
    second = plan_of(model, again, 4)
    assert [each.stages for each in second.layouts] == [each.stages for each in first.layouts]
    assert [each.memory for each in second.layouts] == [each.memory for each in first.layouts]
    assert (file.read_bytes(), list(folder.iterdir())) == (content, [file])


@pytest.mark.parametrize("content", ["", "{", "[]", '{"tiles": {"1 2": 3}}', '{"other": 1}'])
def test_a_damaged_file_is_counted_again(
    model: str, folder: Path, content: str, caplog: pytest.LogCaptureFixture
) -> None:
    expected = counted(model).tile_decoding((1, 4, 4), 4)
    (file,) = folder.iterdir()
    whole = file.read_text()
    file.write_text(content)
    with caplog.at_level(logging.WARNING):
        assert counted(model).tile_decoding((1, 4, 4), 4) == expected
    assert (file.read_text(), caplog.records) == (whole, [])


def test_counts_are_made_without_a_file(
    model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "assets").write_text("")
    monkeypatch.setattr("huggingface_hub.utils._cache_assets.HF_ASSETS_CACHE", tmp_path / "assets")
    with caplog.at_level(logging.WARNING):
        assert hub.cache_folder("counts") is None
        assert counted(model).tile_decoding((1, 4, 4), 4).convolution_flops > 0
        monkeypatch.setattr(hub, "cache_folder", lambda name: tmp_path / "gone")
        assert counted(model).tile_decoding((1, 4, 4), 4).convolution_flops > 0
    assert caplog.records == []


def test_the_file_is_named_after_what_the_counts_depend_on(
    model: str, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def name(model: str, skeleton: str = SKELETON) -> str:
        CountsFile(checkpoint_of(model), skeleton).write(Counts())
        (file,) = folder.iterdir()
        file.unlink()
        return file.name

    config, change = "transformer/config.json", {"_diffusers_version": "0"}
    other = tiny.changed(Path(model), tmp_path / "other", config, change)
    names = [name(model), name(str(other)), name(model, "tests.tiny:save")]
    monkeypatch.setattr("longtake.pipelines.counting.cache.__version__", "0")
    names.append(name(model))
    assert len(set(names)) == 4
    monkeypatch.undo()
    monkeypatch.setattr(hub, "cache_folder", lambda name: folder)
    assert name(model) == names[0]


def test_the_file_stands_beside_those_of_the_hub(tmp_path: Path) -> None:
    code = "from longtake.pipelines.loading.files import hub; print(hub.cache_folder('counts'))"
    found = _run(code, HF_HOME=str(tmp_path))
    assert Path(found.strip()).is_relative_to(tmp_path / "assets" / "longtake")


# What a user sees.


def test_a_family_without_costs_plans(
    model: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arithmetic, family = spec_of(model), installed_families()["hunyuan_video"]
    monkeypatch.setattr(
        "longtake.pipelines.models.hunyuan_video.spec.inspect",
        lambda checkpoint, **options: replace(arithmetic, costs=None),  # type: ignore[arg-type]
    )
    with pytest.raises(ModelError, match="HunyuanVideo gives neither costs nor a skeleton"):
        registry.inspect(checkpoint_of(model), weights=False)
    counting = replace(family, skeleton=SKELETON)
    monkeypatch.setattr(registry, "installed_families", lambda: {family.name: counting})
    spec = registry.inspect(checkpoint_of(model), weights=False)
    assert isinstance(spec.costs, CountedCosts)
    found, expected = (plan_of(model, costs, 4) for costs in (spec.costs, arithmetic.costs))
    assert found.best.dims == expected.best.dims
    assert found.best.step_bytes == expected.best.step_bytes


@pytest.mark.parametrize(
    ("skeleton", "reason"),
    [
        (SKELETON.replace("hunyuan_video", "broken"), "RuntimeError: Tensor.item"),
        (SKELETON.replace("hunyuan_video", "missing"), "AttributeError: "),
        ("tests.nowhere.at_all:skeleton", "ModuleNotFoundError: No module named 'tests.nowhere'"),
    ],
)
def test_a_family_that_cannot_be_counted_is_refused(
    model: str, folder: Path, skeleton: str, reason: str
) -> None:
    costs = CountedCosts(checkpoint_of(model), spec_of(model), skeleton)
    with pytest.raises(ModelError) as caught:
        _ = costs.attention
    message = str(caught.value)
    assert f"{skeleton} does not run on the meta device: {reason}" in message
    assert "give the family's spec costs of its own" in message
    assert "\n" not in message
    assert list(folder.iterdir()) == []


def test_torch_is_imported_only_to_count(model: str, tmp_path: Path) -> None:
    code = f"""
import sys
from tests.unit.pipelines.counting.planned import counted, plan_of
plan_of({model!r}, counted({model!r}), 4)
print("torch" in sys.modules)
"""
    assert [_run(code, HF_HOME=str(tmp_path)).strip() for _ in range(2)] == ["True", "False"]


def _run(code: str, **environment: str) -> str:
    finished = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert finished.returncode == 0, finished.stderr
    return finished.stdout
