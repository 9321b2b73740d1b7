"""Layouts of Wan's transformer against diffusers' converter, at all released sizes."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from diffusers.loaders.single_file_utils import convert_wan_transformer_to_diffusers

from longtake.configs.models import presets
from longtake.errors import ModelError
from longtake.pipelines.loading.checkpoint import Checkpoint
from longtake.pipelines.models.wan.configs import TransformerConfig
from longtake.pipelines.models.wan.tensors import transformer_tensors
from tests import foreign_wan, tiny_wan
from tests.unit.pipelines.models.wan.architectures import ARCHITECTURES
from tests.unit.pipelines.models.wan.layouts.files import (
    LAYOUTS,
    Tensors,
    header,
    layout_of,
    module_tensors,
    on_meta,
    shapes_of,
)

Write = Callable[[Tensors], Tensors]

WRITERS: dict[str, Write] = {"diffusers'": dict, "Wan's own": foreign_wan.own_transformer}


def diffusers_tensors(name: str) -> dict[str, torch.Tensor]:
    config = TransformerConfig.model_validate(ARCHITECTURES[name])
    return on_meta(dict(transformer_tensors(config)))


def converted(own: Tensors) -> dict[str, torch.Tensor]:
    """diffusers' names, by its converter and the one name that only its script converts."""
    tensors: dict[str, torch.Tensor] = convert_wan_transformer_to_diffusers(dict(own))
    if (positions := tensors.pop("img_emb.emb_pos", None)) is not None:
        tensors["condition_embedder.image_embedder.pos_embed"] = positions
    return tensors


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_own_names_at_real_size(name: str) -> None:
    """Each tensor of the file is one of the module, by the name that diffusers converts it to."""
    expected = diffusers_tensors(name)
    own = foreign_wan.own_transformer(expected)
    reference = converted(own)
    assert shapes_of(reference) == shapes_of(expected)
    layout = layout_of(own)
    assert layout.name == "Wan's own"
    config = {**ARCHITECTURES[name], **layout.config(header(own))}
    assert dict(layout.shapes(config)) == shapes_of(expected)
    names = layout.names(config)
    assert set(names) == set(expected)
    for key, (piece,) in names.items():
        assert piece.rows is None and own[piece.name] is reference[key]


@pytest.mark.parametrize("layout_name", WRITERS)
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_configuration_from_shapes(name: str, layout_name: str) -> None:
    """The number of heads follows for released sizes alone: no shape tells it."""
    file = WRITERS[layout_name](diffusers_tensors(name))
    layout = layout_of(file)
    told = layout.config(header(file))
    assert layout.name == layout_name
    expected = TransformerConfig.model_validate(ARCHITECTURES[name])
    heads = {"num_attention_heads", "attention_head_dim"}
    assert heads <= set(told) or name == "odd"
    odd = {key: ARCHITECTURES[name][key] for key in heads - set(told)}
    found = TransformerConfig.model_validate({**odd, **told})
    assert found == expected.model_copy(update={"out_channels": expected.latent_channels})


def test_presets_that_a_file_fits() -> None:
    """Two pairs of presets have transformers of one architecture, which no file tells apart."""
    fitting: dict[str, set[str]] = {}
    for name in (each for each in presets() if each.startswith("wan")):
        config = Checkpoint.open(name, configs_only=True).parse_config(
            TransformerConfig, "transformer"
        )
        file = foreign_wan.own_transformer(on_meta(dict(transformer_tensors(config))))
        told = layout_of(file).config(header(file))
        assert TransformerConfig.model_validate(told) == config
        fitting.setdefault(str(sorted(told.items())), set()).add(name)
    assert sorted(map(sorted, fitting.values())) == [
        ["wan2.1-flf2v-14b-720p"],
        ["wan2.1-i2v-14b-480p", "wan2.1-i2v-14b-720p"],
        ["wan2.1-t2v-1.3b"],
        ["wan2.1-t2v-14b", "wan2.2-t2v-a14b"],
        ["wan2.2-i2v-a14b"],
        ["wan2.2-ti2v-5b"],
    ]


@pytest.mark.parametrize("layout_name", WRITERS)
@pytest.mark.parametrize("kind", tiny_wan.KINDS)
def test_values(kind: str, layout_name: str) -> None:
    model = tiny_wan.transformer(**tiny_wan.KINDS[kind].transformer)
    expected = model.state_dict()
    read = module_tensors(WRITERS[layout_name](expected), dict(model.config))
    assert set(read) == set(expected)
    for name, tensor in expected.items():
        assert torch.equal(read[name], tensor), name


def test_query_norms_of_image_keys_are_unused() -> None:
    """Some diffusers files hold them; the module does not have them."""
    name = "blocks.0.attn2.norm_added_q.weight"
    assert layout_of({**diffusers_tensors("odd"), name: torch.empty(70)}).unused(name)


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("patch_embedding.weight", None),
        ("patch_embedding.weight", (70, 12, 2, 3)),
        ("patch_embedding.weight", (70, 12, 0, 3, 3)),
        ("blocks.0.ffn.0.weight", (90,)),
        ("head.head.weight", None),
        ("img_emb.emb_pos", (34, 24)),
    ],
)
def test_tensors_that_tell_no_configuration(name: str, shape: tuple[int, ...] | None) -> None:
    file = foreign_wan.own_transformer(diffusers_tensors("odd"))
    layout = layout_of(file)
    if shape is None:
        del file[name]
    else:
        file[name] = torch.empty(shape, device="meta")
    with pytest.raises(ModelError, match=name.replace(".", r"\.")):
        layout.config(header(file))


def test_sizes_that_no_model_has() -> None:
    file = foreign_wan.own_transformer(diffusers_tensors("odd"))
    layout, width = layout_of(file), 2**21
    file["patch_embedding.weight"] = torch.empty(width, 12, 2, 3, 4, device="meta")
    config = {**ARCHITECTURES["odd"], **layout.config(header(file))}
    for function in (layout.shapes, layout.names):
        with pytest.raises(ModelError, match="patch_size"):
            function(config)


@pytest.mark.parametrize(
    "names",
    [
        (),
        ("double_blocks.0.img_attn_qkv.weight", "final_layer.linear.weight"),
        ("blocks.0.modulation", "head.head.weight"),
        ("transformer_blocks.0.attn.to_q.weight", "proj_out.weight"),
    ],
)
def test_other_files_are_not_recognized(names: tuple[str, ...]) -> None:
    tensors = header({name: torch.empty(1) for name in names})
    assert not any(layout.recognizes(tensors) for layout in LAYOUTS)
