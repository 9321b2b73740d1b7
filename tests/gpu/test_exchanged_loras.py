"""LoRAs are exchanged on a GPU, wherever weights live: as if the model was loaded with them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from longtake.configs.fields.weights import WeightPlace
from longtake.engine.loras.choice import NO_LORAS, LoraChoice
from longtake.parallel import World
from tests import tiny
from tests.distributed.test_exchanged_loras import LAYERS, exchange
from tests.simple_loras import save_lora

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")


@pytest.mark.parametrize("storage", [None, "float8"])
@pytest.mark.parametrize("place", ["resident", "streamed", "disk"])
def test_exchanged_as_if_loaded(tmp_path: Path, place: WeightPlace, storage: Any) -> None:
    folder = str(tiny.save(tmp_path / "tiny"))
    lora = save_lora(tmp_path / "style.safetensors", folder, LAYERS["style"], 1)
    gpu = World(torch.device("cuda", torch.cuda.current_device()))
    case, style = (place, storage, "bfloat16"), LoraChoice(uses=(str(lora),))
    none, with_style, again = exchange(gpu, folder, *case, [NO_LORAS, style, NO_LORAS]).latents
    np.testing.assert_array_equal(again, none)
    assert abs(with_style - none).max() > 1e-3
    loaded = exchange(gpu, folder, *case, [style])
    np.testing.assert_array_equal(loaded.latents[0], with_style)
