"""Which files of a model's folder are read, by their names alone, and what no folder may hold."""

from __future__ import annotations

import os
import re
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from longtake.errors import ModelError, one_line
from longtake.files.reading import check_regular
from longtake.pipelines.tensor_files import FLOAT_DTYPES, Tensor, TensorFile, TensorFileError

CONFIGS = ("config.json", "scheduler_config.json", "preprocessor_config.json")

TOKENIZER_CONFIG = "tokenizer_config.json"

MAX_VOCABULARY_BYTES = 36 * 2**20
"""The largest that are known have 32 MiB; parsed, a hostile one takes 20 times as much memory."""

_VOCABULARIES = (("tokenizer.json",), ("vocab.json", "merges.txt"), ("tokenizer.model",))
_TOKENIZER = {
    TOKENIZER_CONFIG,
    "special_tokens_map.json",
    "added_tokens.json",
    *(name for names in _VOCABULARIES for name in names),
}
_WEIGHTS = ("diffusion_pytorch_model", "model")
_VARIANT = re.compile(
    rf"({'|'.join(_WEIGHTS)})"
    r"(\.(?P<file>\w+)\.safetensors(\.index\.json)?|\.safetensors\.index\.(?P<index>\w+)\.json)"
)
_PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
_MAX_ENTRIES = 10_000


def text_files(names: Collection[str]) -> list[str]:
    """The configurations and vocabularies that are read of a component.

    Args:
        names: of the files in its folder.
    """
    return sorted({*CONFIGS, *_TOKENIZER}.intersection(names))


def weights_file(names: Collection[str], folder: Path) -> str:
    """The file that holds a component's weights, or the index of several files.

    The one without a variant in its name is taken; else the only variant that is there.

    Args:
        names: of the files in its folder.
        folder: for the error.

    Raises:
        ModelError: there is none, or only a pickle, or more than one variant.
    """
    for stem in _WEIGHTS:
        for name in (f"{stem}.safetensors.index.json", f"{stem}.safetensors"):
            if name in names:
                return name
    variants: dict[str, str] = {}
    for name in sorted(names, reverse=True):  # an index before the file of its name
        if found := _VARIANT.fullmatch(name):
            variants.setdefault(found["file"] or found["index"], name)
    if len(variants) > 1:
        raise ModelError(
            f"{folder} has weights of the variants {' and '.join(sorted(variants))}, and none "
            "without a variant: keep the files of one"
        )
    if not variants:
        raise ModelError(_no_weights(names, folder))
    return next(iter(variants.values()))


def check_vocabulary(names: Collection[str], folder: Path) -> None:
    """Check that a tokenizer's folder has all files of one kind of vocabulary.

    Raises:
        ModelError: it has not.
    """
    if TOKENIZER_CONFIG not in names:
        raise ModelError(
            f"{folder / TOKENIZER_CONFIG} is missing: download or save the model again"
        )
    if not any(set(needed) <= set(names) for needed in _VOCABULARIES):
        kinds = " or ".join(" with ".join(needed) for needed in _VOCABULARIES)
        raise ModelError(
            f"{folder} has no vocabulary: expected {kinds}; download or save the model again"
        )


def check_tokenizer(path: Path) -> None:
    """Check that a tokenizer.json can be used.

    Raises:
        ModelError: it is damaged.
    """
    from tokenizers import Tokenizer

    try:
        Tokenizer.from_file(os.fspath(path))
    except Exception as error:  # it raises nothing else
        raise ModelError(
            f"{path} holds no tokenizer ({one_line(error)[:150]}): download or save the model again"
        ) from error


def check_folder(root: Path) -> None:
    """Look through a model's folder for what must not be in one.

    Hidden files and folders are left out, and so are links that lead nowhere.

    Raises:
        ModelError: there is a circle of links, a pipe, a device, a socket, a damaged safetensors
            file, something that cannot be read, or far too much.
    """
    num_entries = 0
    seen: set[tuple[int, int]] = set()
    left: list[tuple[Path, tuple[tuple[int, int], ...]]] = [(root, ())]
    try:
        while left:
            folder, above = left.pop()
            status = os.stat(folder)
            identity = status.st_dev, status.st_ino
            if identity in above:
                raise ModelError(f"{folder} is a link to a folder that it is in: remove it")
            if identity in seen:
                continue
            seen.add(identity)
            with os.scandir(folder) as entries:
                for entry in entries:
                    num_entries += 1
                    if num_entries > _MAX_ENTRIES:
                        raise ModelError(
                            f"{root} holds more than {_MAX_ENTRIES} files: name a folder that "
                            "holds a model alone"
                        )
                    if entry.name.startswith("."):
                        continue
                    if entry.is_dir():
                        left.append((Path(entry.path), (*above, identity)))
                    else:
                        _check_file(Path(entry.path))
    except OSError as error:
        raise ModelError(
            f"{error.filename or root} cannot be read: {error.strerror}; take it out of the "
            "model's folder"
        ) from error


def _check_file(path: Path) -> None:
    try:
        check_regular(path)
    except FileNotFoundError:  # a link that leads nowhere
        return
    if path.suffix == ".safetensors":
        read_header(path)


def read_header(path: Path) -> TensorFile:
    """The header of a safetensors file of a model.

    Raises:
        ModelError: it is missing, or no whole safetensors file.
    """
    try:
        return TensorFile.read(path)
    except FileNotFoundError as error:
        raise ModelError(f"{path} is missing: download or save the model again") from error
    except (OSError, TensorFileError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise ModelError(
            f"{path} cannot be read: it is no whole safetensors file ({reason}); download it "
            "again; other formats are not read, since they can run code"
        ) from error


def read_tensors(files: Sequence[Path]) -> dict[str, Tensor]:
    """The tensors that some files hold together, by name.

    Raises:
        ModelError: a file is missing or damaged, or two hold the same tensor.
    """
    tensors: dict[str, Tensor] = {}
    for file in files:
        held = read_header(file).tensors
        if twice := sorted(tensors.keys() & held):
            raise ModelError(
                f"{file} holds {shown(twice[0])}, which another file beside it holds, too: "
                "download or save the model again"
            )
        tensors |= held
    return tensors


def check_tensors(
    tensors: Mapping[str, Tensor], expected: Mapping[str, tuple[int, ...]], folder: Path
) -> None:
    """Compare the tensors of a component with those that its configuration describes.

    Args:
        tensors: that its files hold, by name.
        expected: shapes, by name.
        folder: the component's.

    Raises:
        ModelError: one is missing, is too many, or has another shape or a dtype of no floats.
    """
    missing = sorted(expected.keys() - tensors.keys())
    unknown = sorted(tensors.keys() - expected.keys())
    if missing or unknown:
        wrong = (
            f"lacks {missing[0]}"
            if missing
            else f"holds {shown(unknown[0])}, which the model has not"
        )
        raise ModelError(
            f"{folder} {wrong} ({len(missing)} missing, {len(unknown)} too many): its weights and "
            "its config.json are not of the same model"
        )
    for name, shape in expected.items():
        held = tensors[name]
        if held.shape != shape:
            raise ModelError(
                f"{folder} holds {name} of shape {held.shape}, its config.json says {shape}: they "
                "are not of the same model"
            )
        if held.dtype not in FLOAT_DTYPES:
            raise ModelError(
                f"{folder} holds {name} as {held.dtype}, not one of {', '.join(FLOAT_DTYPES)}: "
                "quantized weights are not supported"
            )


def shown(value: Any) -> str:
    """A name from a file, as it can stand in an error."""
    name = str(value)
    return name if name.isprintable() and len(name) <= 80 else repr(name[:80])


def _no_weights(names: Collection[str], folder: Path) -> str:
    pickles = sorted(name for name in names if name.endswith(_PICKLES))
    if pickles:
        return (
            f"{folder} holds its weights as a pickle, {pickles[0]}, which can run code and is not "
            "read: save the model again with safe_serialization=True"
        )
    expected = " or ".join(f"{stem}.safetensors" for stem in _WEIGHTS)
    there = sorted(name for name in names if name.endswith(".safetensors"))
    but = f" (there are {', '.join(there[:3])})" if there else ""
    return (
        f"{folder} has no weights: expected {expected}, or their .index.json{but}; download or "
        "save the model again"
    )
