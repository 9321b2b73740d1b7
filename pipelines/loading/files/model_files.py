"""Selects the files of a model's folder by name, and checks folders, headers and tensors."""

from __future__ import annotations

import os
import re
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from longtake.errors import ModelError, one_line
from longtake.files.reading import check_regular, read_json, read_regular
from longtake.pipelines.loading.files.tensor_files import (
    FLOAT_DTYPES,
    Tensor,
    TensorFile,
    TensorFileError,
)

CONFIGS = ("config.json", "scheduler_config.json", "preprocessor_config.json")

TOKENIZER_CONFIG = "tokenizer_config.json"

MAX_VOCABULARY_BYTES = 36 * 2**20
"""The largest known vocabularies have 32 MiB. Parsing a hostile file takes 20 times its size."""

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
_SHARD = re.compile(r"[\w.-]+\.safetensors", re.ASCII)
_MAX_ENTRIES, _MAX_SHARDS = 10_000, 1000


def text_files(names: Collection[str]) -> list[str]:
    """A component's configuration and vocabulary files.

    Args:
        names: Names of the files in the component's folder.
    """
    return sorted({*CONFIGS, *_TOKENIZER}.intersection(names))


def weights_file(names: Collection[str], folder: Path) -> str:
    """A component's weights file, or the index of its shards.

    A file without a variant in its name takes precedence over the only variant.

    Args:
        names: Names of the files in the component's folder.
        folder: The component's folder, for error messages.

    Raises:
        ModelError: There are no weights, only a pickle, or several variants.
    """
    for stem in _WEIGHTS:
        for name in (f"{stem}.safetensors.index.json", f"{stem}.safetensors"):
            if name in names:
                return name
    variants: dict[str, str] = {}
    for name in sorted(names, reverse=True):  # an index precedes the file of the same name
        if match := _VARIANT.fullmatch(name):
            variants.setdefault(match["file"] or match["index"], name)
    if len(variants) > 1:
        raise ModelError(
            f"{folder} has weights of the variants {' and '.join(sorted(variants))}, and none "
            "without a variant: keep the files of one"
        )
    if not variants:
        raise ModelError(_no_weights(names, folder))
    return next(iter(variants.values()))


def shards(index: Path) -> list[str]:
    """Names of the shards in an index of weights, all in the folder of the index.

    Raises:
        ModelError: The index cannot be read, or names no safetensors files beside it.
    """
    mapped = read_object(index).get("weight_map")
    files = list(mapped.values()) if isinstance(mapped, dict) else []
    if not files or any(not isinstance(each, str) for each in files):
        raise ModelError(f"{index} maps no weights: download or save the model again")
    for shard in files:
        if not _SHARD.fullmatch(shard):
            raise ModelError(
                f"{index} names {printable(shard)}, which is no safetensors file beside it: "
                "download or save the model again"
            )
    names = sorted(set(files))
    if len(names) > _MAX_SHARDS:
        raise ModelError(
            f"{index} names {len(names)} files: {_MAX_SHARDS} are the most that are read"
        )
    return names


def read_object(path: Path) -> dict[str, Any]:
    """The object in a JSON file of a model.

    Raises:
        ModelError: The file is missing, or holds no JSON object.
    """
    try:
        content = read_json(path)
    except FileNotFoundError as error:
        raise ModelError(f"{path} is missing: download or save the model again") from error
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or one_line(error)
        raise ModelError(f"{path} cannot be read as JSON: {reason}") from error
    if not isinstance(content, dict):
        raise ModelError(f"{path} holds no JSON object: download or save the model again")
    return content


def read_whole(path: Path) -> bytes:
    """The content of a model's file, which is no larger than the largest vocabulary.

    Raises:
        ModelError: It cannot be read.
    """
    try:
        return read_regular(path, MAX_VOCABULARY_BYTES)
    except OSError as error:
        raise ModelError(f"{path} cannot be read: {error.strerror}") from error


def check_vocabulary(names: Collection[str], folder: Path) -> None:
    """Check that a tokenizer has its configuration and one complete vocabulary, and can be parsed.

    Args:
        names: Names of the files in the tokenizer's folder.
        folder: The folder.

    Raises:
        ModelError: A file is missing, too large, damaged, or names code to run.
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
    if "auto_map" in read_object(folder / TOKENIZER_CONFIG):
        raise ModelError(
            f"{folder / TOKENIZER_CONFIG} names code of its own (auto_map), which is not run: take "
            "it out, if the tokenizer does without"
        )
    for name in text_files(names):
        read_whole(folder / name)
    if "tokenizer.json" in names:
        _check_tokenizer(folder / "tokenizer.json")


def _check_tokenizer(path: Path) -> None:
    """Check that a tokenizer.json can be parsed.

    Raises:
        ModelError: The file is damaged.
    """
    from tokenizers import Tokenizer

    try:
        Tokenizer.from_file(os.fspath(path))
    except Exception as error:  # tokenizers raises plain Exception
        raise ModelError(
            f"{path} holds no tokenizer ({one_line(error)[:150]}): download or save the model again"
        ) from error


def check_folder(root: Path) -> None:
    """Check a model's folder, recursively, for entries that are not allowed.

    Hidden files and folders and dangling links are ignored.

    Raises:
        ModelError: The folder contains a cycle of links, a pipe, a device, a socket, a damaged
            safetensors file, an unreadable entry, or more than 10,000 entries.
    """
    num_entries = 0
    seen: set[tuple[int, int]] = set()
    pending: list[tuple[Path, tuple[tuple[int, int], ...]]] = [(root, ())]
    try:
        while pending:
            folder, ancestors = pending.pop()
            status = os.stat(folder)
            identity = status.st_dev, status.st_ino
            if identity in ancestors:
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
                        pending.append((Path(entry.path), (*ancestors, identity)))
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
    except FileNotFoundError:  # a dangling link
        return
    if path.suffix == ".safetensors":
        read_header(path)


def read_header(path: Path) -> TensorFile:
    """Read the header of a model's safetensors file.

    Raises:
        ModelError: The file is missing, or not a complete safetensors file.
    """
    with _damage_as_error(path):
        return TensorFile.read(path)


def samples(path: Path) -> Iterator[bytes]:
    """Yield what tells a model's file from others: of weights, the header and parts of tensors.

    Raises:
        ModelError: The file cannot be read.
    """
    if path.suffix != ".safetensors":
        yield read_whole(path)
        return
    try:
        yield from read_header(path).samples()
    except OSError as error:
        raise ModelError(f"{path} cannot be read: {error.strerror}") from error


@contextmanager
def _damage_as_error(path: Path) -> Iterator[None]:
    try:
        yield
    except FileNotFoundError as error:
        raise ModelError(f"{path} is missing: download or save the model again") from error
    except (OSError, TensorFileError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise ModelError(
            f"{path} cannot be read: it is no whole safetensors file ({reason}); download it again"
        ) from error


def merge_tensors(files: Iterable[TensorFile]) -> dict[str, Tensor]:
    """The tensors of several files, by name.

    Raises:
        ModelError: Two files hold the same tensor.
    """
    tensors: dict[str, Tensor] = {}
    for file in files:
        found = file.tensors
        if duplicates := sorted(tensors.keys() & found):
            raise ModelError(
                f"{file.path} holds {printable(duplicates[0])}, which another file of the "
                "component also holds: download or save the model again"
            )
        tensors |= found
    return tensors


def check_tensors(
    tensors: Mapping[str, Tensor],
    expected: Mapping[str, tuple[int, ...]],
    folder: Path | str,
    *,
    encoded: Collection[str] = (),
) -> None:
    """Check a component's tensors against its configuration.

    Args:
        tensors: Tensors in the component's files, by name.
        expected: Expected shapes, by name.
        folder: What holds the tensors, for error messages: the component's folder.
        encoded: Names of tensors that longtake encodes itself, in any dtype.

    Raises:
        ModelError: A tensor is missing or unexpected, or has the wrong shape or a dtype that is
            not floating-point.
    """
    missing = sorted(expected.keys() - tensors.keys())
    unknown = sorted(tensors.keys() - expected.keys())
    if missing or unknown:
        wrong = (
            f"lacks {missing[0]}"
            if missing
            else f"holds {printable(unknown[0])}, which the model does not have"
        )
        raise ModelError(
            f"{folder} {wrong} ({len(missing)} missing, {len(unknown)} too many): its weights and "
            "its config.json are not of the same model"
        )
    for name, shape in expected.items():
        found = tensors[name]
        if found.shape != shape:
            raise ModelError(
                f"{folder} holds {name} of shape {found.shape}, its config.json says {shape}: they "
                "are not of the same model"
            )
        if found.dtype not in FLOAT_DTYPES and name not in encoded:
            raise ModelError(
                f"{folder} holds {name} as {found.dtype}, not one of {', '.join(FLOAT_DTYPES)}: "
                "quantized weights are not supported"
            )


def printable(value: Any) -> str:
    """A name from a file, truncated and escaped for an error message."""
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
    others = sorted(name for name in names if name.endswith(".safetensors"))
    hint = f" (there are {', '.join(others[:3])})" if others else ""
    return (
        f"{folder} has no weights: expected {expected}, or their .index.json{hint}; download or "
        "save the model again"
    )
