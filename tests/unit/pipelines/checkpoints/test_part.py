"""A file in another layout stands in for a component: its values exactly, or a refusal."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from longtake.engine.tools.inspection import CheckpointReport, inspect_path
from longtake.errors import ModelError
from longtake.pipelines import registry
from longtake.pipelines.checkpoints.part import Part, check_experts
from longtake.pipelines.checkpoints.recognition import recognize
from longtake.pipelines.loading.checkpoint import Checkpoint
from longtake.pipelines.loading.files.model_files import read_header
from tests.unit.pipelines.checkpoints.conftest import Tensors

Change = Callable[[Tensors], object]


def with_prefix(tensors: Mapping[str, torch.Tensor], prefix: str) -> Tensors:
    return {prefix + name: tensor for name, tensor in tensors.items()}


def opened(toy: Path, **parts: Path) -> Checkpoint:
    return Checkpoint.open(str(toy), parts=parts)


def test_the_values_of_every_range_of_rows(toy: Path, whole: Tensors, part: Path) -> None:
    """q, k and v come from three tensors, two outputs from one: a split rank reads its rows."""
    source = opened(toy, transformer=part).source("transformer")
    assert source.tensors.keys() == whole.keys()
    for name, tensor in whole.items():
        assert source.tensors[name].shape == tuple(tensor.shape)
        assert torch.equal(source.read(name), tensor), name
        for first, last in ((0, 1), (40, 60), (47, 97), (0, 0), (len(tensor) - 1, len(tensor))):
            rows = slice(first, last)
            assert torch.equal(source.read(name, rows), tensor[rows]), (name, rows)


def test_values_take_the_shape_that_the_module_has(toy: Path, tmp_path: Path) -> None:
    """A file may hold a table as rows where the module has one row of them all, or the other way
    round; and rows of several dtypes."""
    from longtake.pipelines.checkpoints.layout import Piece
    from longtake.pipelines.checkpoints.pieces import assemble
    from longtake.pipelines.checkpoints.pieces_source import PiecesSource
    from longtake.pipelines.loading.tensor_source import SafetensorsSource

    table, last = torch.arange(24.0).reshape(6, 4), torch.ones(1, 4, dtype=torch.bfloat16)
    path = tmp_path / "x.safetensors"
    save_file({"p.table": table, "p.last": last, "p.one": table[None].clone()}, path)
    names = {
        "row": (Piece("table", (0, 2)),),
        "rows": (Piece("one"),),
        "mixed": (Piece("table", (2, 6)), Piece("last")),
    }
    shapes = {"row": (1, 2, 4), "rows": (6, 4), "mixed": (5, 4)}
    stored = {name[2:]: each for name, each in read_header(path).tensors.items()}
    tensors = assemble(stored, names, shapes, lambda name: False, "x")
    assert {each.dtype for each in tensors.values()} == {"F32"}
    source = PiecesSource(SafetensorsSource([path]), names, tensors, "p.")
    mixed = torch.cat([table[2:], last.float()])
    for name, values in {"row": table[None, :2], "rows": table, "mixed": mixed}.items():
        assert torch.equal(source.read(name), values)
        for first in range(len(values)):
            for end in range(first, len(values) + 1):
                assert torch.equal(source.read(name, slice(first, end)), values[first:end])


@pytest.mark.parametrize("prefix", ["model.diffusion_model.", "transformer.", "module."])
def test_a_known_prefix_is_no_part_of_names(
    toy: Path, whole: Tensors, elsewhere: Tensors, tmp_path: Path, prefix: str
) -> None:
    path = tmp_path / "prefixed.safetensors"
    save_file(with_prefix(elsewhere, prefix), path)
    checkpoint = opened(toy, transformer=path)
    assert checkpoint.parts["transformer"].recognized.prefix == prefix
    registry.inspect(checkpoint)
    assert torch.equal(checkpoint.source("transformer").read("embed.weight"), whole["embed.weight"])


def test_a_whole_checkpoint_holds_several_components(
    toy: Path, elsewhere: Tensors, tmp_path: Path
) -> None:
    vae = {name: tensor + 1 for name, tensor in load_file(toy / "vae/model.safetensors").items()}
    path = tmp_path / "all.safetensors"
    tensors = with_prefix(elsewhere, "model.diffusion_model.") | with_prefix(vae, "vae.")
    save_file(tensors | {"model.diffusion_model.step": torch.zeros(1)}, path)
    checkpoint = opened(toy, transformer=path, vae=path)
    assert torch.equal(checkpoint.source("vae").read("bias"), vae["bias"])
    assert "step" not in checkpoint.tensors("transformer")
    with pytest.raises(ModelError, match=r"holds toy's .* and toy's .*: one of them must be named"):
        recognize(read_header(path).tensors)
    save_file(tensors | {"foreign": torch.zeros(1)}, path)
    with pytest.raises(ModelError, match="holds foreign beside the transformer"):
        opened(toy, transformer=path)


def test_the_model_says_what_shapes_do_not(toy: Path, part: Path, tmp_path: Path) -> None:
    """Heads are not told from shapes; a file with fewer layers is one of another model."""
    config = opened(toy, transformer=part).config("transformer")
    assert config == json.loads((toy / "transformer/config.json").read_text())
    short = {name: each for name, each in load_file(part).items() if "blocks.1" not in name}
    save_file(short, part)
    checkpoint = opened(toy, transformer=part)
    assert checkpoint.config("transformer")["num_layers"] == 1
    other = Path(shutil.copytree(toy, tmp_path / "other"))
    (other / "transformer/config.json").write_text(json.dumps({**config, "head_size": 32}))
    with pytest.raises(ModelError, match="they are not of the same model"):
        opened(other, transformer=part)


def test_a_folder_says_what_its_component_is(toy: Path, whole: Tensors, tmp_path: Path) -> None:
    """A folder of shards with a config.json of the class, which counts more than the model's."""
    folder = tmp_path / "elsewhere"
    folder.mkdir()
    config = json.loads((toy / "transformer/config.json").read_text())
    config |= {"_class_name": "ToyDenoiser", "num_heads": 6, "head_size": 8}
    (folder / "config.json").write_text(json.dumps(config))
    names = sorted(whole)
    mapped: dict[str, str] = {}
    for number, own in enumerate((names[::2], names[1::2]), 1):
        file = f"model-0000{number}-of-00002.safetensors"
        save_file({name: whole[name] for name in own}, folder / file)
        mapped |= dict.fromkeys(own, file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": mapped}))
    for path in (folder, folder / "model.safetensors.index.json"):
        checkpoint = opened(toy, transformer=path)
        read = checkpoint.source("transformer").read
        assert all(torch.equal(read(name), tensor) for name, tensor in whole.items())
    assert opened(toy, transformer=folder).config("transformer")["num_heads"] == 6
    with pytest.raises(ModelError, match="one of several shards: name their folder"):
        opened(toy, transformer=folder / "model-00001-of-00002.safetensors")


def test_the_fingerprint_is_that_of_the_values(toy: Path, part: Path, tmp_path: Path) -> None:
    base, first = opened(toy).fingerprint(), opened(toy, transformer=part).fingerprint()
    moved = tmp_path / "a name,\nin two lines.safetensors"
    shutil.copy(part, moved)
    assert base != first == opened(toy, transformer=moved).fingerprint()
    tensors = load_file(part)
    tensors["head.bias"][0] += 1
    save_file(tensors, part)
    assert opened(toy, transformer=part).fingerprint() != first
    with pytest.raises(ModelError) as refused:
        opened(toy, vae=moved)
    assert "\n" not in str(refused.value)


def test_a_file_that_changes_is_not_used(toy: Path, part: Path) -> None:
    checkpoint = opened(toy, transformer=part)
    checkpoint.fingerprint()
    source = checkpoint.source("transformer")
    os.utime(part, ns=(0, 0))
    for use in (checkpoint.fingerprint, lambda: source.read("head.bias")):
        with pytest.raises(ModelError, match="changed while it was in use"):
            use()


def test_the_files_of_a_replaced_component_are_not_needed(
    toy: Path, part: Path, tmp_path: Path
) -> None:
    other = Path(shutil.copytree(toy, tmp_path / "other"))
    (other / "transformer/model.safetensors").unlink()
    registry.inspect(opened(other, transformer=part))
    with pytest.raises(ModelError, match="has no weights"):
        registry.inspect(opened(other))


REFUSED: dict[str, tuple[Change, str]] = {
    "a tensor is missing": (lambda t: t.pop("blocks.1.k.weight"), r"lacks blocks\.1\.k\.weight"),
    "a tensor too many": (
        lambda t: t.update({"blocks.0.extra": torch.zeros(1)}),
        r"holds blocks\.0\.extra, which the model does not have",
    ),
    "a wrong shape": (lambda t: t.update({"head.bias": torch.zeros(3)}), "of shape"),
    "a transposed weight": (
        lambda t: t.update({"place.weight": t["place.weight"].T.contiguous()}),
        r"holds place\.weight of shape \(3, .*: they are not of the same model",
    ),
    "rows of another width": (
        lambda t: t.update({"blocks.0.q.weight": t["blocks.0.q.weight"].reshape(96, -1)}),
        r"holds blocks\.0\.q\.weight of shape",
    ),
    "rows that nothing takes": (
        lambda t: t.update({"blocks.0.outs.bias": torch.zeros(97)}),
        "another number of its rows",
    ),
    "no known names": (
        lambda t: [t.pop(name) for name in [*t]] and t.update({"weird": torch.zeros(1)}),
        r"holds tensors of no layout that is known here \(1: weird\)",
    ),
    "a LoRA": (
        lambda t: [t.pop(name) for name in [*t]] and t.update({"q.lora_A.weight": torch.ones(1)}),
        r"must be a transformer of .*; a LoRA is named with --lora",
    ),
    "half a prefix": (
        lambda t: t.update({"module.head.bias": t.pop("head.bias")}),
        "lacks head.bias",
    ),
}


@pytest.mark.parametrize(("change", "reason"), REFUSED.values(), ids=REFUSED)
def test_what_does_not_fit_is_refused(toy: Path, part: Path, change: Change, reason: str) -> None:
    tensors = load_file(part)
    change(tensors)
    save_file(tensors, part)
    with pytest.raises(ModelError, match=reason) as refused:
        opened(toy, transformer=part)
    assert str(refused.value).startswith(str(part)) and "\n" not in str(refused.value)


def test_where_nothing_fits_is_refused(toy: Path, model: str, part: Path, tmp_path: Path) -> None:
    for component, path, reason in (
        ("transformer_2", part, "has transformer, vae, text_encoder"),
        ("vae", part, "no vae: name it with --transformer"),
        ("transformer", tmp_path / "none", "is no file and no folder"),
        ("transformer", toy, "is a whole model: name the folder of one component"),
        ("transformer", tmp_path / ("x" * 300), "cannot be read"),
    ):
        with pytest.raises(ModelError, match=reason):
            opened(toy, **{component: path})
    with pytest.raises(ModelError, match="is of HunyuanVideo: name a file of that family"):
        Checkpoint.open(model, parts={"transformer": part})


def test_a_folder_of_several_files_asks_for_one(toy: Path, part: Path, tmp_path: Path) -> None:
    folder = tmp_path / "many"
    folder.mkdir()
    with pytest.raises(ModelError, match="holds no weights"):
        opened(toy, transformer=folder)
    shutil.copy(part, folder / "one.safetensors")
    opened(toy, transformer=folder)
    shutil.copy(part, folder / "two.safetensors")
    with pytest.raises(ModelError, match="holds one.safetensors, two.safetensors: name one"):
        opened(toy, transformer=folder)


def test_a_component_in_two_files_without_an_index(
    toy: Path, whole: Tensors, elsewhere: Tensors, tmp_path: Path
) -> None:
    """As ComfyUI's LLaVA; files that make up more than the component, or less, are not taken."""
    names = sorted(elsewhere)
    half = len(names) // 2
    for at, own in enumerate((names[:half], names[half:])):
        save_file({name: elsewhere[name] for name in own}, tmp_path / f"{at}.safetensors")
    source = opened(toy, transformer=tmp_path).source("transformer")
    assert all(torch.equal(source.read(name), whole[name]) for name in whole)
    report = inspect_path(tmp_path, str(toy))
    assert isinstance(report, CheckpointReport) and not report.components[0].problem
    save_file({"x": torch.zeros(1)}, tmp_path / "2.safetensors")
    for use in (
        lambda: opened(toy, transformer=tmp_path),
        lambda: inspect_path(tmp_path, str(toy)),
    ):
        with pytest.raises(ModelError, match="holds 0.safetensors, 1.safetensors, 2.safe.*name"):
            use()


def test_two_experts_are_two_files(toy: Path, part: Path, elsewhere: Tensors) -> None:
    one = Part.open(part, "transformer", opened(toy)._slot("transformer"))
    with pytest.raises(ModelError, match="both as transformer and as transformer_2"):
        check_experts({"transformer": one, "transformer_2": one})
    low = {f"transformer_2.{name}": tensor + 1 for name, tensor in elsewhere.items()}
    both = with_prefix(elsewhere, "transformer.") | low
    save_file(both, part)
    experts = {
        name: Part.open(part, name, opened(toy)._slot("transformer"))
        for name in ("transformer", "transformer_2")
    }
    assert experts["transformer_2"].recognized.prefix == "transformer_2."
    check_experts(experts)
