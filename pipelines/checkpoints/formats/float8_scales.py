"""Tells which float8 weights of a file have which scales; without torch.

Programs store float8 weights in two ways: as plain values, or divided by scales that other tensors
hold. One taken for the other is a wrong model, so a file that is neither is refused.

- ComfyUI until 2025: ``X.scale_weight``, ``X.scale_input``, and an empty tensor ``scaled_fp8``
- ComfyUI since: ``X.weight_scale``, ``X.input_scale``, and for each layer a JSON object, in the
  tensor ``X.comfy_quant`` or in the metadata under ``_quantization_metadata``
- tencent: a second file, in which ``X`` is the scale of a layer; it is read as ``X.scale_weight``
- lightx2v, musubi-tuner: either name, with a scale for each row or each group of a row's columns

Scales of inputs are for multiplication in float8, which rounds the inputs: they are not used.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from longtake.errors import ModelError
from longtake.pipelines.checkpoints.formats.stored_file import StoredFile, read_small
from longtake.pipelines.loading.files.model_files import printable
from longtake.pipelines.loading.files.tensor_files import FLOAT_DTYPES, Tensor

FLOAT8_DTYPES = ("F8_E4M3", "F8_E5M2")
"""Dtypes in the safetensors format."""

SCALES = ("scale_weight", "weight_scale")
"""What scales of a layer's weight are called in the layer."""

_INPUT_SCALES = ("scale_input", "input_scale")
_MARKER, _LAYER_JSON, _METADATA = "scaled_fp8", "comfy_quant", "_quantization_metadata"
_FORMATS = ("float8_e4m3fn", "float8_e5m2")
_KNOWN_KEYS = {"format", "full_precision_matrix_mult"}
_MAX_LAYER_JSON_BYTES = 4096

Stored = Mapping[str, tuple[StoredFile, Tensor]]


class Scales:
    """The scales of float8 weights.

    Args:
        stored: Stored tensors by name, each with its file.
        files: The files.

    Attributes:
        of: Name of the scale of each scaled weight, by the weight's name.
        hidden: Names of the tensors that are no weights of a model: scales and markers.

    Raises:
        ModelError: A float8 weight is of an unknown kind, or has no scale or two in a file of
            scaled ones; or a scale has no weight, or does not fit it.
    """

    def __init__(self, stored: Stored, files: Sequence[StoredFile]) -> None:
        self.of: dict[str, str] = {}
        self.hidden: set[str] = set()
        marked = any(file.kind == "torch" for file in files)  # tencent's, whose map has them all
        for name, (file, tensor) in stored.items():
            layer, _, leaf = name.rpartition(".")
            if leaf in SCALES:
                self._add(stored, f"{layer}.weight", name)
            elif leaf in _INPUT_SCALES and self._is_float8(stored, f"{layer}.weight"):
                self.hidden.add(name)
            elif leaf == _MARKER:
                marked = True
                self.hidden.add(name)
            elif leaf == _LAYER_JSON:
                _check_format(file, layer, _layer_json(file, name, tensor))
                marked = True
                self.hidden.add(name)
        for file in files:
            for layer, settings in _layers_in_metadata(file).items():
                _check_format(file, layer, settings)
                marked = True
        self._check_weights(stored, marked or bool(self.of))

    def _add(self, stored: Stored, weight: str, name: str) -> None:
        file, scale = stored[name]
        if not self._is_float8(stored, weight):
            found = stored[weight][1].dtype if weight in stored else "not there"
            raise _refused(file, name, f"scales {printable(weight)}, which is {found}, not float8")
        if weight in self.of:
            raise _refused(file, name, f"is the second scale of {printable(weight)}")
        shape = stored[weight][1].shape
        if scale.dtype not in FLOAT_DTYPES or scale_kind(scale.shape, shape) is None:
            what = f"is {scale.dtype} of shape {scale.shape}"
            raise _refused(file, name, f"{what}, which is no scale of a weight of shape {shape}")
        self.of[weight] = name
        self.hidden.add(name)

    def _check_weights(self, stored: Stored, scaled: bool) -> None:
        """Check that all float8 weights are of one known kind."""
        float8 = {name for name in stored if self._is_float8(stored, name)} - self.hidden
        for name in stored.keys() - self.hidden:
            layer, _, leaf = name.rpartition(".")
            weight = f"{layer}.weight"
            if weight in float8 and leaf != "weight" and ("scale" in leaf or "weight" in leaf):
                raise _refused(stored[name][0], name, "belongs to a float8 weight in unknown ways")
        for name in sorted(float8):
            if scaled and name not in self.of:
                raise _refused(stored[name][0], name, "is float8, and has no scale as others have")

    @staticmethod
    def _is_float8(stored: Stored, name: str) -> bool:
        return name in stored and stored[name][1].dtype in FLOAT8_DTYPES


def scale_kind(scale: tuple[int, ...], weight: tuple[int, ...]) -> str | None:
    """What each value of a scale is for.

    Args:
        scale: Shape of the scale.
        weight: Shape of the weight.

    Returns:
        "tensor", "row", or "group": equal parts of a row's columns. None if it is none of these.
    """
    sizes = tuple(scale)
    while sizes and sizes[-1] == 1:
        sizes = sizes[:-1]
    if all(size == 1 for size in sizes):
        return "tensor"
    if sizes == weight[:1]:
        return "row"
    if len(weight) == 2 and len(sizes) == 2 and sizes[0] == weight[0] and sizes[1] > 0:
        return "group" if weight[1] % sizes[1] == 0 else None
    return None


def _layer_json(file: StoredFile, name: str, tensor: Tensor) -> Any:
    begin, end = tensor.offsets
    if tensor.dtype != "U8" or end - begin > _MAX_LAYER_JSON_BYTES:
        raise _refused(file, name, f"is {tensor.dtype} of {end - begin} bytes, no short JSON text")
    try:
        return json.loads(read_small(file, name))
    except (OSError, ValueError, RecursionError) as error:
        raise _refused(file, name, "is not JSON") from error


def _layers_in_metadata(file: StoredFile) -> Mapping[str, Any]:
    if _METADATA not in file.metadata:
        return {}
    try:
        layers = json.loads(file.metadata[_METADATA])["layers"]
    except (KeyError, TypeError, ValueError, RecursionError):
        layers = None
    if not isinstance(layers, dict):
        raise _refused(file, _METADATA, "lists no layers")
    return layers


def _check_format(file: StoredFile, layer: str, settings: Any) -> None:
    if not isinstance(settings, dict) or settings.get("format") not in _FORMATS:
        named = settings.get("format") if isinstance(settings, dict) else settings
        raise _refused(file, layer, f"is stored as {printable(named)}, not as float8")
    if unknown := sorted(settings.keys() - _KNOWN_KEYS):
        raise _refused(file, layer, f"is stored with {printable(unknown[0])}, which is not known")


def _refused(file: StoredFile, name: str, reason: str) -> ModelError:
    return ModelError(
        f"{file.path} holds {printable(name)}, which {reason}: use a file in bf16, fp16, fp8 or "
        "fp8_scaled"
    )
