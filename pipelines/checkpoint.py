"""A model's files in diffusers layout: found, checked and opened; nothing is loaded here."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from longtake.configs.models import bundled, preset_of, presets
from longtake.errors import ModelError, one_line

_WEIGHTS_NAMES = ("diffusion_pytorch_model.safetensors", "model.safetensors")
_PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl")
_SAMPLE_BYTES = 4096
_HUB_CONFIGS = ["model_index.json", "*/*config.json", "longtake.yaml"]
_HUB_FILES = ["*.json", "*.safetensors", "*.txt", "*.model", "*.jinja", "longtake.yaml"]


@dataclass(frozen=True)
class Checkpoint:
    """A model's folder in diffusers layout.

    Attributes:
        model: as the user named it.
        folder: where its files are.
        index: its ``model_index.json``: pipeline class, and the class of each component.
        revision: the commit, of one from the hub.
    """

    model: str
    folder: Path
    index: dict[str, Any]
    revision: str | None = None

    @classmethod
    def open(
        cls, model: str, revision: str | None = None, *, configs_only: bool = False
    ) -> Checkpoint:
        """Find a model and read its index.

        Args:
            model: the name of one that comes with the package ("demo"; a folder of that name is
                "./demo") or of a preset, a folder, or the id of a repository on the Hugging Face
                hub, which is downloaded once (``owner/name``; only data: safetensors, JSON and
                vocabularies).
            revision: branch, tag or commit of a hub id; None is the newest.
            configs_only: its configuration files are enough: a preset's own, or those of a hub id.

        Raises:
            ModelError: there is no such folder or repository, or it is no pipeline.
        """
        folder, commit = bundled().get(model, Path(os.path.expanduser(model))), None
        if not os.path.exists(folder):  # Path's own raises for a name that no file can have
            preset = preset_of(model)
            if preset is not None and configs_only and revision is None:
                folder = preset[0]
            else:
                folder = _download(preset[1] if preset else model, revision, configs_only)
                commit = folder.name  # of the cache's snapshots/COMMIT
        if not (folder / "model_index.json").is_file():
            raise ModelError(
                f"{model} has no model_index.json: pass the folder of a pipeline in diffusers "
                "layout (transformer/, vae/, text_encoder/, ...)"
            )
        return cls(model, folder, _read_json(folder / "model_index.json"), commit)

    @property
    def pipeline_class(self) -> str:
        """The name of the pipeline's class in diffusers."""
        return str(self.index.get("_class_name"))

    def component_class(self, component: str) -> str:
        """The name of a component's class.

        Raises:
            ModelError: the index does not name one.
        """
        named = self.index.get(component)
        if not (isinstance(named, list) and len(named) == 2 and isinstance(named[1], str)):
            raise ModelError(
                f"{self.folder / 'model_index.json'} names no {component}: the pipeline is not "
                "complete, download or save it again"
            )
        return named[1]

    def config(self, component: str, name: str = "config.json") -> dict[str, Any]:
        """A component's configuration.

        Raises:
            ModelError: it is missing or no JSON object.
        """
        return _read_json(self.folder / component / name)

    def weights(self, component: str) -> tuple[Path, ...]:
        """The safetensors files of a component, each complete as its header says.

        Raises:
            ModelError: one is missing, damaged, or a pickle.
        """
        folder = self.folder / component
        for name in _WEIGHTS_NAMES:
            index = folder / f"{name}.index.json"
            if index.is_file():
                shards = _read_json(index).get("weight_map")
                if not (isinstance(shards, dict) and shards) or any(
                    not isinstance(shard, str) for shard in shards.values()
                ):
                    raise ModelError(f"{index} maps no weights: download or save the model again")
                files = [folder / Path(shard).name for shard in sorted(set(shards.values()))]
                break
            if (folder / name).is_file():
                files = [folder / name]
                break
        else:
            raise ModelError(_no_weights(folder))
        for file in files:
            _check_weights(file)
        return tuple(files)

    def fingerprint(self) -> str:
        """A digest of the model's files, alike wherever they lie and whenever they were written.

        Of each tensor of the weights its name, type, place, and first and last 4 KiB count:
        training changes them all, and a model of many GB is not read whole.

        Raises:
            ModelError: a file cannot be read.
        """
        digest = hashlib.sha256()
        kinds = {".json", ".safetensors", ".txt", ".model", ".jinja", ".yaml"}
        walked = os.walk(self.folder, followlinks=True)  # a component's folder may be a link
        files = (Path(folder, name) for folder, _, names in walked for name in names)
        for path in sorted(path for path in files if path.suffix in kinds):
            digest.update(f"{path.relative_to(self.folder).as_posix()}\0".encode())
            try:
                for piece in _samples(path) if path.suffix == ".safetensors" else _whole(path):
                    digest.update(piece)
            except (OSError, ValueError, KeyError, TypeError) as error:
                raise ModelError(f"{path} cannot be read: {one_line(error)}") from error
        return digest.hexdigest()


def _download(model: str, revision: str | None, configs_only: bool) -> Path:
    """A repository of the hub, by its id."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    if model.count("/") != 1 or model.startswith((".", "/", "~")) or model.endswith("/"):
        raise ModelError(
            f"there is no folder {model}: pass a model's folder in diffusers layout, a hub id such "
            f"as hunyuanvideo-community/HunyuanVideo, or {' or '.join([*bundled(), *presets()])}"
        )
    try:
        patterns = _HUB_CONFIGS if configs_only else _HUB_FILES
        return Path(snapshot_download(model, revision=revision, allow_patterns=patterns))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        raise ModelError(
            f"there is no folder {model}, and that cannot be had from the hub at revision "
            f"{revision or 'main'}: check the name, the network and your access "
            f"({type(error).__name__})"
        ) from error


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ModelError(f"{path} is missing: download or save the model again") from error
    except (OSError, ValueError, RecursionError) as error:
        raise ModelError(f"{path} cannot be read as JSON: {one_line(error)}") from error
    if not isinstance(content, dict):
        raise ModelError(f"{path} holds no JSON object: download or save the model again")
    return content


def _whole(path: Path) -> Iterator[bytes]:
    yield path.read_bytes()


def _samples(path: Path) -> Iterator[bytes]:
    """The header of a safetensors file (its length in 8 bytes, then JSON), and each tensor's
    beginning and end."""
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if length > path.stat().st_size:
            raise ValueError("it is no safetensors file")
        yield (header := file.read(length))
        for tensor in json.loads(header).values():
            if "data_offsets" in tensor:
                begin, end = tensor["data_offsets"]
                for at in sorted({begin, max(begin, end - _SAMPLE_BYTES)}):
                    file.seek(8 + length + at)
                    yield file.read(min(_SAMPLE_BYTES, end - at))


def _check_weights(file: Path) -> None:
    try:
        with safe_open(file, framework="np"):
            pass
    except FileNotFoundError as error:
        raise ModelError(f"{file} is missing: download or save the model again") from error
    except (SafetensorError, OSError) as error:
        raise ModelError(
            f"{file} is no whole safetensors file ({one_line(error)}): download it again; other "
            "formats are not read, since they can run code"
        ) from error


def _no_weights(folder: Path) -> str:
    pickles = sorted(path.name for pattern in _PICKLES for path in folder.glob(pattern))
    if pickles:
        return (
            f"{folder} holds its weights as a pickle, {pickles[0]}, which can run code and is not "
            "read: save the model again with safe_serialization=True"
        )
    return (
        f"{folder} has no weights: expected {' or '.join(_WEIGHTS_NAMES)}, or their .index.json; "
        "download or save the model again"
    )
