"""Sizes of text and picture encoders, from the headers of a checkpoint's files; without torch."""

from __future__ import annotations

import logging
import math
import re

from longtake.errors import ModelError
from longtake.pipelines.counting.counts import TextEncoderCounts
from longtake.pipelines.loading.checkpoint import Checkpoint
from longtake.pipelines.text_encoders.tensors import num_streaming_values

logger = logging.getLogger(__name__)

NO_ENCODERS = TextEncoderCounts(parameters=0, matrix_parameters=0, layers=0, streaming_parameters=0)

_ENCODER = re.compile(r"(text|image)_encoder(_\d+)?")
"""Names of components that encode a prompt or a picture, in diffusers."""

_EMBEDDING = re.compile(r"(.*\.)?(shared|\w*embed\w*)\..*weight")
"""Names of tensors that tokens look up, in transformers."""


def stored_encoders(checkpoint: Checkpoint) -> TextEncoderCounts | None:
    """Sizes of the encoders; None, and a warning, if a file is not here."""
    names = [name for name in checkpoint.components if _ENCODER.fullmatch(name)]
    try:
        headers = [checkpoint.tensors(name) for name in names]
    except ModelError as error:
        logger.warning("the plan leaves out the text encoders, whose sizes are unknown: %s", error)
        return None
    shapes = [{name: tensor.shape for name, tensor in header.items()} for header in headers]
    sizes = [(name, math.prod(shape)) for encoder in shapes for name, shape in encoder.items()]
    return TextEncoderCounts(
        parameters=sum(size for _, size in sizes),
        matrix_parameters=sum(size for name, size in sizes if not _EMBEDDING.fullmatch(name)),
        layers=sum(len(shape) > 1 for encoder in shapes for shape in encoder.values()),
        streaming_parameters=sum(num_streaming_values(encoder.items()) for encoder in shapes),
    )
