"""Weights of autoencoders that rest in host memory while nothing is encoded or decoded."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import nn

from longtake.configs.request import ResolvedDecode
from longtake.pipelines import registry
from longtake.pipelines.codec.tiles import TileCoder
from longtake.pipelines.family import VideoCodec
from longtake.pipelines.loading.checkpoint import Checkpoint
from longtake.pipelines.loading.plan import LoadPlan
from longtake.pipelines.models.wan.codec.codec import WanCodec
from tests.rendering import ALONE, ONE_RANK, image_request, render
from tests.wan_coding import vae


class Codec(VideoCodec):
    """A codec of some modules."""

    def __init__(self, *modules: nn.Module) -> None:
        self._modules = modules

    @property
    def modules(self) -> Sequence[nn.Module]:
        return self._modules

    def decoder(self, request: ResolvedDecode) -> TileCoder:
        raise NotImplementedError


def places(modules: Sequence[nn.Module]) -> list[int]:
    """Addresses of the weights."""
    return [
        weights.data_ptr()
        for module in modules
        for weights in (*module.parameters(), *module.buffers())
    ]


def test_weights_are_on_the_device_within_the_context_only() -> None:
    """On a CPU both places are in host memory, and differ."""
    module = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2)).eval().requires_grad_(False)
    expected = {name: each.clone() for name, each in module.state_dict().items()}
    codec = Codec(module)
    with codec.at_work():  # before they rest: no-op
        loaded = places([module])
    codec.rest_on_host()
    resting = places([module])
    for _ in range(2):
        with codec.at_work():
            working = places([module])
            torch.testing.assert_close(module.state_dict(), expected, rtol=0, atol=0)
        assert not set(working) & set(resting)
        assert places([module]) == resting
    torch.testing.assert_close(module.state_dict(), expected, rtol=0, atol=0)
    assert loaded == resting


def test_weights_rest_again_after_an_error() -> None:
    module = nn.Linear(3, 2)
    codec = Codec(module)
    codec.rest_on_host()
    resting = places([module])
    with pytest.raises(ValueError, match="decoding"), codec.at_work():
        raise ValueError("decoding")
    assert places([module]) == resting


def test_a_codec_without_modules_stays_where_it_is() -> None:
    codec = Codec()
    codec.rest_on_host()
    with codec.at_work():
        pass


def test_wan_names_its_whole_autoencoder() -> None:
    model = vae("wan2.1")
    assert list(WanCodec(model).modules) == [model]


def test_pictures_are_encoded_at_work(
    animators: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """And the weights rest while the transformer works."""
    checkpoint, resolved = Checkpoint.open(animators["token_replace"]), image_request()
    pipeline = registry.load(checkpoint, ALONE, LoadPlan.resident(torch.float32))
    expected = render(pipeline, resolved, ONE_RANK, ALONE)
    pipeline.codec.rest_on_host()
    resting = places(pipeline.codec.modules)
    encodes, seen = pipeline.encode_pictures, list[bool]()

    def observed(*args: Any) -> Any:
        seen.append(places(pipeline.codec.modules) != resting)
        return encodes(*args)

    def denoise(module: nn.Module, args: Any) -> None:
        seen.append(places(pipeline.codec.modules) != resting)

    monkeypatch.setattr(pipeline, "encode_pictures", observed)
    with pipeline.denoiser.register_forward_pre_hook(denoise):
        found = render(pipeline, resolved, ONE_RANK, ALONE)
    assert torch.equal(found, expected)
    assert seen == [True] + resolved.num_inference_steps * [False]
