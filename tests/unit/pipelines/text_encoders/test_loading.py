"""Where encoders are, and what they are loaded with."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
import torch
from torch import nn
from transformers import UMT5EncoderModel

from longtake.configs.fields.weights import TextPlace
from longtake.errors import ModelError
from longtake.pipelines.loading.checkpoint import Checkpoint
from longtake.pipelines.loading.plan import ComponentPlan
from longtake.pipelines.models.hunyuan_video.conditioner.image_text import ImageTextEncoders
from longtake.pipelines.text_encoders.encoder import ResidentEncoder, on_device
from longtake.pipelines.text_encoders.loading import center_crop, load_encoder
from tests.tiny import changed

CPU, GPU = torch.device("cpu"), torch.device("cuda", 1)
FLOAT32 = ComponentPlan(torch.float32)


class Recorder(nn.Module):
    """A module that notes where it is moved, and stays where it is."""

    def __init__(self) -> None:
        super().__init__()
        self.moves: list[torch.device] = []

    def to(self, device: torch.device | str) -> Recorder:  # type: ignore[override]
        self.moves.append(torch.device(device))
        return self


def test_encoders_are_on_the_device_only_while_they_encode() -> None:
    modules = [Recorder(), Recorder()]
    with on_device([ResidentEncoder(module, GPU) for module in modules]):
        assert [module.moves for module in modules] == [[GPU], [GPU]]
    assert [module.moves for module in modules] == [[GPU, CPU], [GPU, CPU]]


def test_encoders_leave_the_device_after_an_error() -> None:
    module = Recorder()
    with pytest.raises(ZeroDivisionError), on_device([ResidentEncoder(module, GPU)]):
        raise ZeroDivisionError
    assert module.moves == [GPU, CPU]


@pytest.mark.parametrize("place", get_args(TextPlace))
def test_loaded_encoders_have_no_gradients_and_no_dropout(
    wan: Callable[[str], str], place: TextPlace
) -> None:
    checkpoint, plan = Checkpoint.open(wan("wan21-t2v")), ComponentPlan(torch.bfloat16, place)
    encoder = load_encoder(checkpoint, "text_encoder", UMT5EncoderModel, plan, CPU).module
    assert not any(each.requires_grad for each in encoder.parameters())
    assert not any(module.training for module in encoder.modules())
    assert {each.dtype for each in encoder.parameters()} == {torch.bfloat16}
    assert not any(each.is_meta for each in (*encoder.parameters(), *encoder.buffers()))


def test_tied_weights_are_held_once(wan: Callable[[str], str]) -> None:
    checkpoint = Checkpoint.open(wan("wan21-t2v"))
    encoder = load_encoder(checkpoint, "text_encoder", UMT5EncoderModel, FLOAT32, CPU).module
    assert encoder.shared.weight is encoder.encoder.embed_tokens.weight


def test_attention_named_in_a_configuration_is_not_used(
    wan: Callable[[str], str], tmp_path: Path
) -> None:
    """A name of this form is that of a repository on the hub, with code in it."""
    for key in ("_attn_implementation", "attn_implementation"):
        copy = tmp_path / key
        changed(Path(wan("wan21-t2v")), copy, "text_encoder/config.json", {key: "some/kernels"})
        checkpoint = Checkpoint.open(str(copy))
        encoder = load_encoder(checkpoint, "text_encoder", UMT5EncoderModel, FLOAT32, CPU).module
        assert encoder.config._attn_implementation == "sdpa"
        shutil.rmtree(copy)


@pytest.mark.parametrize(
    ("size", "cropped"),
    [((20, 30), (20, 30)), ((2, 64), (2, 64)), ((2, 100), (2, 64)), ((99, 1), (32, 1))],
)
def test_pictures_of_extreme_aspect_ratio_are_cropped_to_their_center(
    size: tuple[int, int], cropped: tuple[int, int]
) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (*size, 3)).astype(np.uint8)
    top, left = ((side - kept) // 2 for side, kept in zip(size, cropped, strict=True))
    expected = pixels[top : top + cropped[0], left : left + cropped[1]]
    np.testing.assert_array_equal(np.asarray(center_crop(pixels)), expected)


def test_an_image_processor_of_another_model(animators: dict[str, str], tmp_path: Path) -> None:
    crop = {"crop_size": {"height": 20, "width": 20}, "size": {"shortest_edge": 20}}
    source, file = Path(animators["token_replace"]), "image_processor/preprocessor_config.json"
    checkpoint = Checkpoint.open(str(changed(source, tmp_path / "copy", file, crop)))
    with pytest.raises(ModelError, match="makes pictures of 20 x 20 pixels, .* takes 16 x 16"):
        ImageTextEncoders(checkpoint, CPU, FLOAT32)
