"""Specifications of all kinds of Wan checkpoints, and what is refused with one line."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from diffusers import FlowMatchEulerDiscreteScheduler
from safetensors.torch import load_file, save_file

from longtake.errors import ModelError
from longtake.pipelines.loading.checkpoint import Checkpoint
from longtake.pipelines.models.wan.configs import EulerConfig, UniPCConfig
from longtake.pipelines.models.wan.inspection import inspect
from longtake.pipelines.models.wan.options import WanExpertsOptions, WanOptions
from longtake.pipelines.models.wan.spec import WanSpec
from tests import tiny_wan

INDEX = "model_index.json"
SCHEDULER = "scheduler/scheduler_config.json"
ABSENT = [None, None]

PICTURES = {
    "wan21-t2v": {},
    "wan21-i2v": {"image": "required"},
    "wan21-flf2v": {"image": "required", "last_image": "required"},
    "wan22-t2v": {},
    "wan22-i2v": {"image": "required", "last_image": "optional"},
    "wan22-ti2v": {"image": "optional"},
}

Change = Callable[[Path], None]


def spec_of(folder: str | Path, **options: Any) -> WanSpec:
    return inspect(Checkpoint.open(str(folder)), **options)


def edit(name: str, **changes: Any) -> Change:
    """Change values of a JSON file; None removes one, unless null is meant by ``...``."""

    def edited(folder: Path) -> None:
        path = folder / name
        content = {**json.loads(path.read_text()), **changes}
        path.write_text(json.dumps({key: each for key, each in content.items() if each is not ...}))

    return edited


@pytest.mark.parametrize("kind", tiny_wan.KINDS)
def test_every_kind(wan: Callable[[str], str], kind: str) -> None:
    spec, made = spec_of(wan(kind)), tiny_wan.KINDS[kind]
    experts = made.experts == 2
    assert dict(spec.pictures) == PICTURES[kind]
    assert spec.options is (WanExpertsOptions if experts else WanOptions)
    assert spec.transformers == ("transformer", "transformer_2")[: made.experts]
    assert spec.boundary == (1000 * made.index["boundary_ratio"] if experts else None)
    assert spec.expand_timesteps == (kind == "wan22-ti2v")
    assert spec.has_image_keys == made.image_keys
    assert (spec.sampler, spec.flow_shift) == ("unipc", made.flow_shift)
    assert isinstance(spec.scheduler, UniPCConfig)
    assert (spec.size_multiple, spec.frames_multiple) == (32 if spec.expand_timesteps else 16, 4)
    assert spec.costs.num_experts == made.experts


@pytest.mark.parametrize("kind", tiny_wan.KINDS)
def test_configuration_files_suffice_for_a_plan(
    wan: Callable[[str], str], tmp_path: Path, kind: str
) -> None:
    copied = shutil.copytree(wan(kind), tmp_path / kind)
    for weights in copied.rglob("*.safetensors"):
        weights.unlink()
    assert spec_of(copied, weights=False) == spec_of(wan(kind), weights=False)
    with pytest.raises(ModelError, match="transformer has no weights"):
        spec_of(copied)


def test_the_autoencoder_alone(wan: Callable[[str], str], tmp_path: Path) -> None:
    """Decoding needs the weights of one component."""
    copied = Path(shutil.copytree(wan("wan22-t2v"), tmp_path / "model"))
    for component in ("transformer", "transformer_2", "text_encoder"):
        next((copied / component).glob("*.safetensors")).unlink()
    assert spec_of(copied, autoencoder_only=True).boundary == 875


def test_euler(wan: Callable[[str], str], tmp_path: Path) -> None:
    copied = Path(shutil.copytree(wan("wan21-t2v"), tmp_path / "model"))
    FlowMatchEulerDiscreteScheduler(shift=7.0).save_pretrained(copied / "scheduler")
    edit(INDEX, scheduler=["diffusers", "FlowMatchEulerDiscreteScheduler"])(copied)
    spec = spec_of(copied)
    assert (spec.sampler, spec.flow_shift) == ("euler", 7.0)
    assert isinstance(spec.scheduler, EulerConfig)


def test_an_index_of_2_1_without_later_keys(wan: Callable[[str], str], tmp_path: Path) -> None:
    """Files of Wan 2.1 were saved before boundary_ratio, expand_timesteps and transformer_2."""
    copied = Path(shutil.copytree(wan("wan21-t2v"), tmp_path / "model"))
    edit(INDEX, boundary_ratio=..., expand_timesteps=..., transformer_2=...)(copied)
    assert spec_of(copied).boundary is None


def test_a_5b_saved_by_the_other_class(wan: Callable[[str], str], tmp_path: Path) -> None:
    """Its components are the same, and the picture stays optional."""
    copied = Path(shutil.copytree(wan("wan22-ti2v"), tmp_path / "model"))
    edit(INDEX, _class_name="WanImageToVideoPipeline", image_encoder=ABSENT)(copied)
    assert dict(spec_of(copied).pictures) == {"image": "optional"}


def test_tensors_that_diffusers_ignores(wan: Callable[[str], str], tmp_path: Path) -> None:
    copied = Path(shutil.copytree(wan("wan21-i2v"), tmp_path / "model"))
    file = copied / "transformer/diffusion_pytorch_model.safetensors"
    tensors = load_file(file)
    added = tensors["blocks.0.attn2.norm_added_k.weight"].clone()
    save_file({**tensors, "blocks.0.attn2.norm_added_q.weight": added}, file, {"format": "pt"})
    assert spec_of(copied).has_image_keys


def expert_of_another_size(folder: Path) -> None:
    edit("transformer_2/config.json", ffn_dim=32)(folder)


REFUSED: list[tuple[str, Change, str]] = [
    ("wan22-t2v", edit(INDEX, transformer_2=ABSENT), "boundary_ratio=0.875.* names no transform"),
    ("wan22-t2v", edit(INDEX, transformer=ABSENT), "boundary_ratio=0.875.* names no transformer"),
    ("wan22-t2v", edit(INDEX, transformer_2=...), "boundary_ratio=0.875.* names no transformer_2"),
    ("wan22-t2v", edit(INDEX, boundary_ratio=...), "a transformer_2 and no boundary_ratio"),
    ("wan22-t2v", edit(INDEX, boundary_ratio="0.9"), "boundary_ratio=0.9: it must be null, or"),
    ("wan22-t2v", edit(INDEX, boundary_ratio=True), "boundary_ratio=True: it must be null, or"),
    ("wan22-t2v", edit(INDEX, boundary_ratio=1.5), "boundary_ratio=1.5: it must be null, or"),
    ("wan22-t2v", edit(INDEX, expand_timesteps=True), "boundary_ratio=0.875 with expand_timest"),
    ("wan22-t2v", expert_of_another_size, "transformer_2 of different configurations"),
    ("wan21-t2v", edit(INDEX, expand_timesteps=1), "expand_timesteps=1: it must be true or false"),
    ("wan21-t2v", edit(INDEX, transformer=ABSENT), "names no transformer: the pipeline is not"),
    ("wan21-t2v", edit(INDEX, vae=ABSENT), "names no vae: the pipeline is not complete"),
    ("wan21-t2v", edit(INDEX, text_encoder=ABSENT), "names no text_encoder: the pipeline is not"),
    ("wan21-t2v", edit(INDEX, scheduler=ABSENT), "names no scheduler: the pipeline is not"),
    ("wan21-i2v", edit(INDEX, image_encoder=ABSENT), "names no image_encoder: the pipeline is not"),
    (
        "wan21-t2v",
        edit(INDEX, scheduler=["diffusers", "DDIMScheduler"]),
        "an unknown scheduler, DDIMScheduler: Wan runs with UniPCMultistepScheduler or FlowMatch",
    ),
    ("wan21-t2v", edit(SCHEDULER, prediction_type="epsilon"), "prediction_type"),
    ("wan21-t2v", edit(SCHEDULER, use_flow_sigmas=False), "use_flow_sigmas"),
    ("wan21-t2v", edit(SCHEDULER, use_karras_sigmas=True), "use_karras_sigmas"),
    ("wan21-t2v", edit(SCHEDULER, thresholding=True), "thresholding"),
    ("wan21-t2v", edit(SCHEDULER, final_sigmas_type="sigma_min"), "final_sigmas_type"),
    ("wan21-t2v", edit(SCHEDULER, use_dynamic_shifting=True), "use_dynamic_shifting"),
    (
        "wan21-t2v",
        edit(INDEX, _class_name="WanImageToVideoPipeline"),
        r"a transformer of text-to-video \(in_channels=4.*it must name WanPipeline",
    ),
    (
        "wan22-i2v",
        edit(INDEX, _class_name="WanPipeline"),
        r"a transformer of image-to-video \(in_channels=12.*it must name WanImageToVideoPipeline",
    ),
    ("wan21-t2v", edit("transformer/config.json", qk_norm="rms_norm"), "qk_norm"),
    ("wan21-t2v", edit("transformer/config.json", num_layers=3), "blocks.2"),
    ("wan21-t2v", edit("transformer/config.json", patch_size=[1, 2, 1]), "as high as it is wide"),
    ("wan21-i2v", edit("transformer/config.json", added_kv_proj_dim=None), "added_kv_proj_dim"),
    ("wan21-i2v", edit("transformer/config.json", image_dim=24), "image_encoder of 17 tokens of 8"),
    ("wan21-flf2v", edit("transformer/config.json", pos_embed_seq_len=30), "pos_embed_seq_len=30"),
    ("wan21-t2v", edit("transformer/config.json", text_dim=24), "text_encoder of 16 values"),
    (
        "wan21-t2v",
        edit("transformer/config.json", in_channels=6, out_channels=6),
        "a transformer of 6 channels, of which it gives 6, and a vae of 4",
    ),
    ("wan21-i2v", edit("longtake.yaml", max_sequence_length=64), "max_sequence_length=64"),
    ("wan21-i2v", edit("longtake.yaml", sizes={"a": [[40, 48]]}), "size 40x48.* multiples of 16"),
]


@pytest.mark.parametrize(
    ("kind", "change", "message"),
    REFUSED,
    ids=[f"{kind}-{message[:40]}" for kind, _, message in REFUSED],
)
def test_what_is_refused(
    wan: Callable[[str], str], tmp_path: Path, kind: str, change: Change, message: str
) -> None:
    copied = Path(shutil.copytree(wan(kind), tmp_path / "model"))
    change(copied)
    with pytest.raises(ModelError, match=message) as raised:
        spec_of(copied)
    assert "\n" not in str(raised.value)
