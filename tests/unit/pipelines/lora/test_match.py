"""LoRAs reach the transformer that they are for; what fits nowhere is refused by name."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from longtake.configs.fields.lora import LoraUse
from longtake.errors import RequestError
from longtake.pipelines.checkpoints.layout import Piece
from longtake.pipelines.lora.lora_file import LoraFile
from longtake.pipelines.lora.match import match
from longtake.pipelines.lora.targets import LoraTargets
from tests import lora_files
from tests.lora_files import TENCENT, WAN, WAN_PICTURES, Written, write
from tests.lora_targets import Transformer

Transformers = Callable[[str], Transformer]
BOTH = ("transformer", "transformer_2")


def saved(
    transformer: Transformer, path: Path, *prefixes: str, **more: tuple[int, ...]
) -> tuple[Path, Written]:
    """A LoRA of Wan's own names, for each prefix, and tensors of other names and shapes."""
    written = Written()
    for prefix in prefixes:
        names = lora_files.own_names(WAN) if "transformer" in prefix else WAN
        one = write(transformer.base, names, lora_files.KOHYA, f"{prefix}{{}}".format)
        written.tensors |= one.tensors
        written.added |= one.added
    written.tensors |= {name: torch.zeros(shape) for name, shape in more.items()}
    return written.save(path), written


@pytest.mark.parametrize(
    ("prefixes", "use", "components"),
    [
        (("diffusion_model.",), "@transformer_2", ["transformer_2"]),
        (("diffusion_model.",), "@transformer", ["transformer"]),
        (("transformer.",), "@transformer_2", ["transformer_2"]),
        (("transformer.", "transformer_2."), "", list(BOTH)),
        (("transformer_2.",), "", ["transformer_2"]),
        (("transformer_2.",), "@transformer_2", ["transformer_2"]),
    ],
)
def test_the_expert_is_named_by_the_user_or_by_the_file(
    transformers: Transformers,
    tmp_path: Path,
    prefixes: tuple[str, ...],
    use: str,
    components: list[str],
) -> None:
    transformer = transformers("wan22-t2v")
    path, written = saved(transformer, tmp_path / "lora.safetensors", *prefixes)
    found = transformer.match(path, use)
    assert sorted(found.deltas) == components
    for deltas in found.deltas.values():
        assert deltas.keys() == written.added.keys()


@pytest.mark.parametrize(
    ("kind", "prefixes", "use", "text"),
    [
        ("wan22-t2v", ("",), "", r"does not say which of the model's 2 transformers"),
        ("wan22-t2v", ("transformer.",), "", r"write .*@transformer or .*@transformer_2"),
        ("wan22-t2v", ("",), "@transformer_3", r"names no transformer of the model: write .*_2"),
        ("wan21-t2v", ("",), "@transformer_2", r"names no transformer of the model: write .*mer$"),
        ("wan22-t2v", ("transformer_2.",), "@transformer", r"the file names one for each"),
        (
            "wan21-t2v",
            ("transformer_2.",),
            "",
            r"holds transformer_2.blocks.0.attn1.to_q.*42 of its 42",
        ),
    ],
)
def test_a_wrong_expert_is_refused(
    transformers: Transformers,
    tmp_path: Path,
    kind: str,
    prefixes: tuple[str, ...],
    use: str,
    text: str,
) -> None:
    transformer = transformers(kind)
    path, _ = saved(transformer, tmp_path / "lora.safetensors", *prefixes)
    with pytest.raises(RequestError, match=text) as caught:
        transformer.match(path, use, partial=True)
    assert "\n" not in str(caught.value)


STRANGERS = {
    "a text encoder's": "lora_te_text_model_encoder_layers_0_mlp_fc1.lora_down.weight",
    "another kind of adapter": "blocks.0.self_attn.q.oft_blocks",
    "a bias of lora_A": "blocks.0.self_attn.q.lora_A.bias",
    "an alpha without an adapter": "blocks.0.self_attn.k.alpha",
    "no name": ".lora_A.weight",
}


@pytest.mark.parametrize("name", STRANGERS.values(), ids=STRANGERS)
def test_a_tensor_without_a_home_is_refused_by_name(
    transformers: Transformers, tmp_path: Path, name: str
) -> None:
    transformer = transformers("wan21-t2v")
    more = {name: (2, 8)}
    if "lora_te" in name:
        more[name.replace("down", "up")] = (8, 2)
    path, written = saved(transformer, tmp_path / "lora.safetensors", "diffusion_model.", **more)
    with pytest.raises(RequestError) as caught:
        transformer.match(path)
    number = f"{len(more)} of its {len(written.tensors)} tensors"
    assert name in str(caught.value) and number in str(caught.value)
    assert "lora_partial" in str(caught.value) and "\n" not in str(caught.value)
    found = transformer.match(path, partial=True)
    assert set(found.left) == set(more)
    assert found.deltas["transformer"].keys() == written.added.keys()


def test_another_shape_is_refused_and_a_part_may_be_left(
    transformers: Transformers, tmp_path: Path
) -> None:
    transformer = transformers("wan21-t2v")
    path, written = saved(
        transformer,
        tmp_path / "lora.safetensors",
        "",
        **{
            "blocks.1.self_attn.q.lora_A.weight": (2, 8),
            "blocks.1.self_attn.q.lora_B.weight": (8, 2),
        },
    )
    with pytest.raises(RequestError, match=r"a change of 8 x 8 values, and does not fit blocks.1"):
        transformer.match(path)
    left = transformer.match(path, partial=True).left
    assert set(left) == {"blocks.1.self_attn.q.lora_A.weight", "blocks.1.self_attn.q.lora_B.weight"}


def test_the_same_change_in_two_spellings_is_refused(
    transformers: Transformers, tmp_path: Path
) -> None:
    """It would be added twice."""
    transformer = transformers("wan21-t2v")
    one = write(transformer.base, {"blocks.0.ffn.0": WAN["blocks.0.ffn.0"]}, lora_files.KOHYA)
    for other in ("diffusion_model.blocks.0.ffn.0", "lora_unet_blocks_0_ffn_0"):
        again = {
            name.replace("blocks.0.ffn.0", other): each.clone()
            for name, each in one.tensors.items()
        }
        path = Written({**one.tensors, **again}).save(tmp_path / "lora.safetensors")
        with pytest.raises(RequestError, match=r"changes blocks.0.ffn.net.0.proj.weight twice, as"):
            transformer.match(path, partial=True)


def test_a_transposed_difference_is_refused(transformers: Transformers, tmp_path: Path) -> None:
    """It has as many values as the weight. One row of all values is no other weight."""
    transformer, path = transformers("wan21-t2v"), tmp_path / "lora.safetensors"
    weight = transformer.base["blocks.0.ffn.net.0.proj.weight"]
    norm = transformer.base["blocks.0.norm2.weight"]
    diffs = {"blocks.0.ffn.0.diff": weight.T.contiguous(), "blocks.0.norm3.diff": norm[None]}
    Written(diffs).save(path)
    with pytest.raises(RequestError, match=r"does not fit blocks.0.ffn.net.0.proj.weight"):
        transformer.match(path)
    Written({**diffs, "blocks.0.ffn.0.diff": weight}).save(path)
    found = transformer.with_loras(transformer.match(path))
    assert torch.equal(found.read("blocks.0.norm2.weight"), norm.float() * 2)
    assert torch.equal(found.read("blocks.0.ffn.net.0.proj.weight"), weight.float() * 2)


def test_a_single_number_is_not_changed(tmp_path: Path) -> None:
    path = Written({"gate.diff": torch.ones(1)}).save(tmp_path / "lora.safetensors")
    targets = {"transformer": LoraTargets({"gate": ()}, {"own": {"gate": (Piece("gate"),)}})}
    with pytest.raises(RequestError, match=r"does not fit gate of shape \(\)"):
        match(LoraFile.read(path), LoraUse(str(path)), targets)


def test_loras_of_other_models_are_refused_even_in_part(
    transformers: Transformers, tmp_path: Path
) -> None:
    wan, hunyuan = transformers("wan21-t2v"), transformers("hunyuan")
    for_wan, _ = saved(wan, tmp_path / "wan.safetensors", "")
    for_hunyuan = write(hunyuan.base, TENCENT, lora_files.KOHYA).save(tmp_path / "hv.safetensors")
    for transformer, path in ((wan, for_hunyuan), (hunyuan, for_wan)):
        for partial in (False, True):
            with pytest.raises(RequestError, match="it is for another model$"):
                transformer.match(path, partial=partial)


def test_a_lora_of_pictures_does_not_fit_a_model_without(
    transformers: Transformers, tmp_path: Path
) -> None:
    """The rest of it is what a model of text takes, with the input's channels apart."""
    pictures, text = transformers("wan21-i2v"), transformers("wan21-t2v")
    written = write(pictures.base, WAN_PICTURES, lora_files.KOHYA)
    path = written.save(tmp_path / "lora.safetensors")
    with pytest.raises(RequestError, match="patch_embedding|k_img"):
        text.match(path)
    left = text.match(path, partial=True).left
    modules = {name.partition(".lora")[0].removesuffix(".alpha") for name in left}
    assert modules == {"patch_embedding", *(WAN_PICTURES.keys() - WAN.keys())}
    reverse = write(
        text.base, {k: v for k, v in WAN.items() if k != "patch_embedding"}, lora_files.PEFT
    )
    assert not pictures.match(reverse.save(tmp_path / "t2v.safetensors")).left


def test_the_layout_of_the_names_is_told(transformers: Transformers, tmp_path: Path) -> None:
    hunyuan = transformers("hunyuan")
    for layout, modules in (
        ("tencent's", TENCENT),
        ("ComfyUI's", lora_files.COMFYUI),
        ("diffusers'", lora_files.own_names(TENCENT)),
    ):
        path = write(hunyuan.base, modules, lora_files.PEFT).save(tmp_path / "lora.safetensors")
        assert hunyuan.match(path).layout == layout
