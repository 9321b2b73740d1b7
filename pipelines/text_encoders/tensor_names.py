"""Maps the tensor names of encoders' weights files to those of tensors.py."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TypeVar

ValueT = TypeVar("ValueT")

_SHARED, _OWN = "shared.weight", "encoder.embed_tokens.weight"

_UNUSED_BY_UMT5 = re.compile(r"(decoder|lm_head)\..*")
_HEAD_OF_LLAVA = re.compile(r"((language_)?model\.)?lm_head\..*")
_UNUSED_BY_CLIP_VISION = re.compile(
    r"(text_model|text_projection|visual_projection)\..*|logit_scale|.*position_ids"
)


def umt5_encoder(tensors: Mapping[str, ValueT]) -> dict[str, ValueT]:
    """Rename the tensors of a file to those of :func:`~.tensors.umt5_tensors`.

    A file holds the token embedding as ``shared.weight``, as ``encoder.embed_tokens.weight``, or
    as both, of which the encoder uses the latter. Tensors of the decoder are left out.

    Args:
        tensors: Tensors, or their header entries, by their names in the file.
    """
    renamed = {
        name: tensor for name, tensor in tensors.items() if not _UNUSED_BY_UMT5.fullmatch(name)
    }
    if _OWN in renamed:
        renamed[_SHARED] = renamed.pop(_OWN)
    return renamed


def llava_without_head(tensors: Mapping[str, ValueT]) -> dict[str, ValueT]:
    """Name the tensors of LlavaModel as in the files of any version, and leave out the output head.

    Args:
        tensors: Tensors, or their header entries, of LlavaForConditionalGeneration, by their names
            in the file.
    """
    return {
        name.removeprefix("model."): tensor
        for name, tensor in tensors.items()
        if not _HEAD_OF_LLAVA.fullmatch(name)
    }


def clip_vision(tensors: Mapping[str, ValueT]) -> dict[str, ValueT]:
    """Rename the tensors of a file to those of :func:`~.tensors.clip_vision_tensors`.

    Files saved before transformers 5 have the prefix ``vision_model.``. Tensors of CLIP's text
    model, and its projections, are left out.

    Args:
        tensors: Tensors, or their header entries, by their names in the file.
    """
    return {
        name.removeprefix("vision_model."): tensor
        for name, tensor in tensors.items()
        if not _UNUSED_BY_CLIP_VISION.fullmatch(name)
    }
