"""Loads encoders, tokenizers and image processors.

Legend: H W pixels.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from PIL import Image
from transformers import AutoTokenizer

from longtake.errors import ModelError, one_line
from longtake.pipelines.codec.picture import Pixels
from longtake.pipelines.loading.checkpoint import Checkpoint
from longtake.pipelines.loading.plan import ComponentPlan
from longtake.pipelines.loading.quiet import quiet_libraries
from longtake.pipelines.text_encoders.encoder import Encoder
from longtake.pipelines.text_encoders.file_tensors import FileTensor, stand_ins
from longtake.pipelines.text_encoders.placement import place_encoder

try:
    from transformers import CLIPImageProcessorPil as CLIPImageProcessor
except ImportError:  # before transformers 5
    from transformers import CLIPImageProcessor

_MAX_ASPECT_RATIO = 32
"""Largest aspect ratio that is resized for CLIP, which sees only the central square."""

Tensors = Mapping[str, FileTensor]


def load_encoder(
    checkpoint: Checkpoint,
    component: str,
    encoder_class: Any,
    plan: ComponentPlan,
    device: torch.device,
    rename: Callable[[Tensors], Tensors] = dict,
) -> Encoder:
    """Load an encoder, in evaluation mode and without gradients. Memory is needed for it once.

    Args:
        checkpoint: Checkpoint that holds the encoder.
        component: Name of the encoder's folder.
        encoder_class: The encoder's class in transformers.
        plan: Dtype of the weights, of which transformers keeps some in float32, and their place:
            ``resident``, ``streamed`` or ``disk``.
        device: Device that encodes.
        rename: Mapping from the tensors of the files to those of the class.

    Raises:
        ModelError: The encoder is missing or damaged, or lacks a tensor; or the host has too little
            memory.
    """
    with _loading(checkpoint, component):
        config = encoder_class.config_class.from_dict(checkpoint.config(component))
        source = checkpoint.source(component)
        # Without a path, transformers uses only these tensors and this configuration.
        encoder, info = encoder_class.from_pretrained(
            None,
            config=config,
            state_dict=rename(stand_ins(source)),
            dtype=plan.dtype,
            attn_implementation=_attention(encoder_class),
            output_loading_info=True,
        )
    if info["missing_keys"]:  # transformers would initialize them randomly
        raise ModelError(
            f"{source.label} lacks {min(info['missing_keys'])}: its weights and its config.json "
            "are not of the same model"
        )
    return place_encoder(encoder.eval().requires_grad_(False), source, plan.place, device)


def load_tokenizer(checkpoint: Checkpoint, component: str, encoder: Encoder) -> Any:
    """Load a tokenizer.

    Args:
        checkpoint: Checkpoint that holds the tokenizer.
        component: Name of the tokenizer's folder.
        encoder: The encoder of its tokens.

    Raises:
        ModelError: The tokenizer is missing or damaged, has no pad_token, or has tokens that the
            encoder does not know.
    """
    folder = checkpoint.folder_of(component)
    with _loading(checkpoint, component):
        tokenizer = AutoTokenizer.from_pretrained(
            folder, local_files_only=True, trust_remote_code=False
        )
    if tokenizer.pad_token is None:
        raise ModelError(
            f"{folder} holds a tokenizer without a pad_token: set one in its "
            "tokenizer_config.json, or download the model again"
        )
    last, known = _last_token(tokenizer), encoder.module.config.get_text_config().vocab_size
    if last >= known:
        raise ModelError(
            f"{folder} holds a tokenizer of {last + 1} tokens, and its encoder has {known}: they "
            "are not of the same model"
        )
    return tokenizer


def _last_token(tokenizer: Any) -> int:
    """The largest token; those that were added need not follow the others."""
    return int(max(len(tokenizer) - 1, *tokenizer.added_tokens_decoder))


def load_image_processor(checkpoint: Checkpoint, image_px: int) -> Any:
    """Load CLIP's image processor: the PIL one, whether or not torchvision is installed.

    Args:
        checkpoint: Checkpoint that holds the processor.
        image_px: Height and width in pixels of the pictures that the encoder takes.

    Raises:
        ModelError: The processor is missing or damaged, or its pictures have another size.
    """
    folder = checkpoint.folder_of("image_processor")
    with _loading(checkpoint, "image_processor"):
        processor = CLIPImageProcessor.from_pretrained(folder, local_files_only=True)
        tried = processor(Image.new("RGB", (1, 1)), return_tensors="pt")
        height, width = tried.pixel_values.shape[2:]
    if (height, width) != (image_px, image_px):
        raise ModelError(
            f"{folder} makes pictures of {height} x {width} pixels, and their encoder takes "
            f"{image_px} x {image_px}: they are not of the same model"
        )
    return processor


def center_crop(picture: Pixels) -> Image.Image:
    """Crop a picture of extreme aspect ratio to its center, which is all that CLIP sees.

    Args:
        picture: Pixels, ``[H, W, 3]``.
    """
    height, width, _ = picture.shape
    longest = _MAX_ASPECT_RATIO * min(height, width)
    top, left = (max(0, side - longest) // 2 for side in (height, width))
    return Image.fromarray(picture[top : top + longest, left : left + longest])


def _attention(encoder_class: Any) -> str:
    """Attention of the encoder, by name: a configuration could name a kernel on the hub."""
    return "sdpa" if encoder_class._supports_sdpa else "eager"  # UMT5: eager before transformers 5


@contextmanager
def _loading(checkpoint: Checkpoint, component: str) -> Iterator[None]:
    """Silence the libraries, and turn what they raise into a ModelError."""
    try:
        with quiet_libraries():
            yield
    except ModelError:
        raise
    except Exception as error:  # transformers raises arbitrary exceptions on damaged files
        raise ModelError(
            f"{checkpoint.label(component)} cannot be loaded: {one_line(error)}; download or "
            "save the model again"
        ) from error
