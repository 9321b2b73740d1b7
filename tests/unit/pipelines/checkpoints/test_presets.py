"""A file, or a publisher's own folder, is the model of one preset, or of none that it tells."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from longtake.configs import models
from longtake.configs.families import family_of
from longtake.configs.models import bundled, configuration_folders
from longtake.errors import ModelError
from longtake.pipelines import registry
from longtake.pipelines.checkpoints import presets
from longtake.pipelines.checkpoints.presets import find_model, presets_of
from longtake.pipelines.checkpoints.recognition import layouts_of
from longtake.pipelines.loading.checkpoint import Checkpoint
from longtake.pipelines.loading.files import hub
from longtake.pipelines.loading.files.tensor_files import Tensor
from tests import foreign_hunyuan, foreign_wan

SAME_TRANSFORMERS = [
    {"demo", "demo-i2v"},
    {"hunyuan-video", "hunyuan-video-i2v"},
    {"wan2.1-i2v-14b-480p", "wan2.1-i2v-14b-720p"},
    {"wan2.1-t2v-14b", "wan2.2-t2v-a14b"},
]
"""Presets that no shape of a transformer tells apart."""


def headers_in(layout: Any, config: dict[str, Any]) -> dict[str, Tensor]:
    """What a file in a layout holds: of each tensor, the rows that its pieces end with."""
    headers: dict[str, Tensor] = {}
    shapes, names = dict(layout.shapes(config)), layout.names(config)
    for name, shape in shapes.items():
        for piece in names[name]:
            rows = sum(shape[:1]) if piece.rows is None else piece.rows[1]
            known = headers.get(piece.name)
            rows = max(rows, known.shape[0] if known else 0)
            headers[piece.name] = Tensor("BF16", (rows, *shape[1:]), (0, 0))
    return headers


@pytest.mark.parametrize("name", configuration_folders())
def test_every_preset_is_told_from_the_shapes_of_its_transformer(name: str) -> None:
    checkpoint = Checkpoint.open(name, configs_only=True)
    config = checkpoint.config("transformer")
    family = family_of(checkpoint.pipeline_class)
    assert family is not None
    same = next((names for names in SAME_TRANSFORMERS if name in names), {name})
    for layout in layouts_of(family, "transformer"):
        found = presets_of({"transformer": headers_in(layout, config)})
        assert set(found) == same, layout.name


@pytest.fixture
def known(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[[str, str], None]:
    """Makes presets of models: their configuration files, with a repository that does not exist."""
    folders = dict(configuration_folders())
    for module in (models, presets):
        monkeypatch.setattr(module, "configuration_folders", lambda: folders)

    def add(name: str, model: str) -> None:
        folder = tmp_path / "presets" / name
        for file in Path(model).rglob("*"):
            if file.suffix in (".json", ".yaml") and "tokenizer" not in file.parent.name:
                to = folder / file.relative_to(model)
                to.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(file, to)
        defaults = json.loads((folder / "longtake.yaml").read_text())
        (folder / "longtake.yaml").write_text(json.dumps({**defaults, "repository": f"no/{name}"}))
        folders[name] = folder

    return add


def assert_same(found: Checkpoint, model: str, *components: str) -> None:
    """Every tensor of the components, and all that is said of them, is that of a model."""
    own = Checkpoint.open(model)
    for component in components:
        source, expected = found.source(component), own.source(component)
        unused = expected.tensors.keys() - source.tensors.keys()
        assert all("norm_added_q" in name for name in unused)
        for name in source.tensors:
            assert torch.equal(source.read(name), expected.read(name)), name
    spec, other = registry.inspect(found), registry.inspect(own)
    assert spec.costs == other.costs
    same_repository = {"repository": other.defaults.repository}
    assert spec.defaults.model_copy(update=same_repository) == other.defaults


@pytest.mark.parametrize("kind", ["wan21-i2v", "wan22-t2v", "wan22-ti2v"])
def test_wans_own_folder_is_whole(
    wan: Callable[[str], str], known: Callable[[str, str], None], tmp_path: Path, kind: str
) -> None:
    """Nothing is asked of the hub: weights and tokenizer are here, the rest is the preset's."""
    for each in ("wan21-t2v", "wan21-i2v", "wan22-t2v", "wan22-i2v", "wan22-ti2v"):
        known(each, wan(each))
    folder = foreign_wan.save_own_folder(wan(kind), tmp_path / "own")
    checkpoint = Checkpoint.open(str(folder))
    assert (checkpoint.preset, checkpoint.model) == (kind, str(folder))
    experts = ["transformer_2"] if kind == "wan22-t2v" else []
    encoders = ["image_encoder"] if kind == "wan21-i2v" else []
    assert {*checkpoint.parts} == {"transformer", "vae", "text_encoder", *experts, *encoders}
    assert_same(checkpoint, wan(kind), "transformer", "vae", *experts)
    first = checkpoint.fingerprint()
    moved = Path(shutil.move(folder, tmp_path / "moved"))
    assert Checkpoint.open(str(moved)).fingerprint() == first
    if experts:
        high = moved / "high_noise_model"
        with pytest.raises(ModelError, match=r"fits several models.*--model wan21-t2v .* or .*-2"):
            Checkpoint.open(str(high))
        high.rename(tmp_path / "WAN21-t2v")  # as the published folders are named
        found = find_model(tmp_path / "WAN21-t2v")
        assert found is not None and found.preset == "wan21-t2v" and not found.whole
        with pytest.raises(ModelError, match="WAN21-t2v is of wan21-t2v, which has the files"):
            Checkpoint.open(str(tmp_path / "WAN21-t2v"))


def test_a_revision_is_that_of_the_presets_repository(
    wan: Callable[[str], str],
    known: Callable[[str, str], None],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The rest then comes from there, although the package has it, too."""
    known("wan21-t2v", wan("wan21-t2v"))
    folder = foreign_wan.save_own_folder(wan("wan21-t2v"), tmp_path / "own")
    asked = []

    def fetch(repository: str, revision: str | None, names: Any) -> Path:
        asked.append((repository, revision))
        return snapshot

    snapshot = models.configuration_folders()["wan21-t2v"]
    monkeypatch.setattr(hub, "fetch", fetch)
    checkpoint = Checkpoint.open(str(folder), "v1")
    assert asked[0] == ("no/wan21-t2v", "v1") and len(checkpoint.parts) == 3
    assert checkpoint.revision == snapshot.name  # as of the hub's snapshots
    assert Checkpoint.open(str(folder)).revision is None


def test_one_expert_is_not_a_model(
    wan: Callable[[str], str], known: Callable[[str, str], None], tmp_path: Path
) -> None:
    known("wan22-i2v", wan("wan22-i2v"))
    path = tmp_path / "high.safetensors"
    save_file(foreign_wan.own_components(wan("wan22-i2v"))["transformer"], path)
    with pytest.raises(ModelError, match="one of the two experts of wan22-i2v: name both"):
        Checkpoint.open(str(path))
    both = {"transformer": path, "transformer_2": path}
    with pytest.raises(ModelError, match="both as transformer and as transformer_2"):
        Checkpoint.open(wan("wan22-i2v"), parts=both)


def test_tencents_folder_is_whole(tmp_path: Path) -> None:
    folder = foreign_hunyuan.save_tencents_folder(bundled()["demo"], tmp_path / "ckpts")
    checkpoint = Checkpoint.open(str(folder))
    assert checkpoint.preset == "demo"
    assert_same(checkpoint, "demo", "transformer", "vae")
    inner = folder / "hunyuan-video-t2v-720p"
    with pytest.raises(ModelError, match="--model demo --transformer FILE or --model demo-i2v"):
        Checkpoint.open(str(inner))
    with pytest.raises(ModelError, match="has no model_index.json: pass the folder of a pipeline"):
        Checkpoint.open(str(tmp_path))


def test_what_is_no_model_is_refused(tmp_path: Path) -> None:
    """One line that says what the file is, if that is known."""
    demo = bundled()["demo"]
    vae, odd, foreign = (tmp_path / f"{name}.safetensors" for name in ("vae", "a\nb", "foreign"))
    save_file(load_file(next((demo / "vae").glob("*.safetensors"))), vae)
    save_file({"weird": torch.zeros(1)}, odd)
    narrow = foreign_hunyuan.component(demo, "transformer")
    save_file({name: each for name, each in narrow.items() if ".3." not in name}, foreign)
    (tmp_path / "text.txt").write_text("no weights")
    for path, reason in (
        (vae, "holds HunyuanVideo's vae .*, no transformer: name it with --vae"),
        (odd, "no layout that is known"),
        (foreign, "holds a transformer that no preset has"),
        (tmp_path / "text.txt", "cannot be read"),
    ):
        with pytest.raises(ModelError, match=reason) as refused:
            Checkpoint.open(str(path))
        assert "\n" not in str(refused.value)
