"""USP as an attention implementation of Hugging Face transformers, named "usp".

::

    set_usp_attention(model)
    sequence = ShardedSequence(mesh, TokenShards.zigzag(num_tokens, dims))
    loss = model(**causal_lm_inputs(sequence, tokens)).loss
    loss.backward()  # then sum the gradients over the ranks of the sequence

Models pass keyword arguments of their forward on to their attention function; ``usp`` is one. So
every call names the sequence that it works on, and gradient checkpointing repeats it with the same.

Legend: B batch, S/s tokens of the whole sequence / of this rank, N query heads, M KV heads, H head
size.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.masking_utils import bidirectional_mask_function, causal_mask_function

from longtake.errors import LayoutError, ModelError, TensorError
from longtake.parallel.plugs.sequence import IGNORED_LABEL, ShardedSequence

NAME = "usp"
"""The name of the attention implementation and of the keyword argument."""

_LAYER_TYPES = {"full_attention", "mlp", "moe"}
"""Layer types of a config whose tokens meet in full attention, or not at all."""

_UNSUPPORTED = {
    "sliding_window": "a sliding window",
    "softcap": "soft capping of scores",
    "s_aux": "attention sinks",
    "sinks": "attention sinks",
    "position_bias": "a bias of scores",
    "indices": "sparse attention",
    "block_indices": "sparse attention",
    "cache": "a paged KV cache",
    "output_attentions": "returning the attention weights",
    "cu_seq_lens_q": "documents by cu_seq_lens (ShardedSequence takes document_lengths)",
}
"""Keyword arguments of attention functions that ask for what is not computed."""


def set_usp_attention(model: PreTrainedModel) -> None:
    """Make a model compute its attention across ranks.

    Registers "usp" with transformers and sets it as the model's attention implementation. From then
    on, the model's forward needs ``usp=ShardedSequence(...)``; :func:`causal_lm_inputs` makes all
    its arguments.

    Args:
        model: Any model whose tokens meet in attention alone.

    Raises:
        ModelError: The model does not call transformers' attention functions, or has other layers
            in which tokens meet (convolutions, recurrence, linear attention).
    """
    for module in model.modules():
        _check_module(module)
    AttentionInterface.register(NAME, usp_attention_forward)
    AttentionMaskInterface.register(NAME, usp_mask)
    model.set_attn_implementation(NAME)


def causal_lm_inputs(
    sequence: ShardedSequence, input_ids: torch.Tensor, labels: torch.Tensor | None = None
) -> dict[str, Any]:
    """Arguments of a causal language model's forward for this rank's tokens.

    The loss is this rank's part: the parts of all ranks of the sequence sum to the mean loss over
    the whole sequence, and so do the gradients of the weights.

    Args:
        sequence: The sequence.
        input_ids: ``[B, S]``, the whole sequence, the same on every rank.
        labels: ``[B, S]``, as models take them: not shifted, -100 for a token that is not to be
            predicted; ``input_ids`` if None.

    Returns:
        ``input_ids`` ``[B, s]``; ``position_ids`` ``[1, s]``; ``shift_labels`` ``[B, s]``, and
        ``labels`` without an element, since a model would shift them inside the shard;
        ``num_items_in_batch``, the number of labels in the whole sequence; ``use_cache`` False;
        ``usp``, the sequence.

    Raises:
        TensorError: A shape other than ``[B, S]``.
    """
    shifted = sequence.shift_labels(input_ids if labels is None else labels)
    return {
        "input_ids": sequence.split(input_ids, dim=1),
        "position_ids": sequence.positions()[None],
        "labels": shifted.new_empty(0),
        "shift_labels": sequence.split(shifted, dim=1),
        "num_items_in_batch": (shifted != IGNORED_LABEL).sum(),
        "use_cache": False,
        NAME: sequence,
    }


def usp_attention_forward(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    *,
    scaling: float | None = None,
    dropout: float = 0.0,
    is_causal: bool | None = None,
    sliding_window: int | None = None,
    usp: ShardedSequence | None = None,
    **options: Any,
) -> tuple[torch.Tensor, None]:
    """The attention function "usp", as transformers calls it.

    Args:
        module: The attention module; its ``is_causal`` counts if the argument is None.
        query: ``[B, N, s, H]``, this rank's queries.
        key: ``[B, M, s, H]``, this rank's keys.
        value: ``[B, M, s, H]``, this rank's values.
        attention_mask: None, which :func:`usp_mask` returns.
        scaling: Factor of the scores; ``H ** -0.5`` if None.
        dropout: 0.
        is_causal: Whether tokens see only those at or before their position.
        sliding_window: None, or at least S.
        usp: The sequence.
        options: What the model passes to all attention functions.

    Returns:
        ``[B, s, N, H]``, and None for the attention weights.

    Raises:
        LayoutError: ``usp`` is missing.
        TensorError, ModelError: A mask, dropout, or another feature that is not computed.
    """
    if not isinstance(usp, ShardedSequence):
        raise LayoutError(
            f"usp={usp!r} reached {type(module).__name__}: pass usp=ShardedSequence(mesh, shards) "
            "to the model's forward"
        )
    if attention_mask is not None:
        raise TensorError(
            f"attention_mask of shape {tuple(attention_mask.shape)}: usp attention takes no mask; "
            "leave it out, and pack sequences of different lengths as document_lengths"
        )
    if dropout > 0:
        raise ModelError(
            f"dropout={dropout} in {type(module).__name__}: attention weights are never whole, so "
            "none are dropped; set the dropout of attention to 0 in the model's config"
        )
    if sliding_window is not None and sliding_window >= usp.shards.num_tokens:
        sliding_window = None  # it hides nothing
    _check_options(module, {**options, "sliding_window": sliding_window})
    if is_causal is None:
        is_causal = getattr(module, "is_causal", True)
    q_BsNH, k_BsMH, v_BsMH = (tensor.transpose(1, 2) for tensor in (query, key, value))
    return usp.attend(q_BsNH, k_BsMH, v_BsMH, causal=is_causal, scale=scaling), None


def usp_mask(
    *,
    attention_mask: torch.Tensor | None = None,
    mask_function: Callable[..., Any] = causal_mask_function,
    local_size: int | None = None,
    use_vmap: bool = False,
    **_: Any,
) -> None:
    """The mask function "usp", as transformers calls it: refuse all masks that are not causal.

    Args:
        attention_mask: ``[B, s]``, padding; None.
        mask_function: The mask that the model wants. transformers adds "only inside a document" if
            positions are not consecutive, as those of a shard: ``ShardedSequence`` says where
            documents end.
        local_size: Length of a sliding window or a chunk; None.
        use_vmap: Whether the model has a mask of its own.
        _: Sizes of the mask, which is not made.

    Raises:
        TensorError: There is padding.
        ModelError: The mask is not causal attention, nor attention between all tokens.
    """
    if attention_mask is not None:
        raise TensorError(
            f"attention_mask of shape {tuple(attention_mask.shape)}: usp attention takes no mask; "
            "leave it out, and pack sequences of different lengths as document_lengths"
        )
    if local_size is not None:
        raise ModelError(
            f"a sliding window or chunk of {local_size} tokens: usp attention has none; if no "
            "sequence is longer, set sliding_window=None in the model's config"
        )
    packed = mask_function.__name__ == "and_mask"
    plain = mask_function in (causal_mask_function, bidirectional_mask_function)
    if use_vmap or not (packed or plain):
        raise ModelError(
            f"a mask of the model's own ({mask_function.__name__}): usp attention is causal, or "
            "between all tokens"
        )


def _check_module(module: nn.Module) -> None:
    """Refuse a module in which tokens meet outside of transformers' attention functions."""
    if isinstance(module, (nn.modules.conv._ConvNd, nn.RNNBase)):
        raise ModelError(
            f"the model has a {type(module).__name__}, in which a token sees its neighbors, and "
            "those may be on another rank: usp attention takes models whose tokens meet in "
            "attention alone"
        )
    if not isinstance(module, PreTrainedModel):
        return
    other = {*(getattr(module.config, "layer_types", None) or ())} - _LAYER_TYPES
    if other or module._is_stateful:
        kinds = ", ".join(sorted(other)) or "recurrent"
        raise ModelError(
            f"{type(module).__name__} has {kinds} layers: usp attention takes models whose layers "
            "are all full_attention"
        )
    if not module._can_set_attn_implementation():
        raise ModelError(
            f"{type(module).__name__} does not call transformers' AttentionInterface, so that "
            "usp attention cannot be set: call longtake.parallel.usp_attention in the model"
        )


def _check_options(module: nn.Module, options: dict[str, Any]) -> None:
    """Refuse what the attention function is asked for and does not compute."""
    for name, feature in _UNSUPPORTED.items():
        value = options.get(name)
        if value is not None and value is not False:
            raise ModelError(
                f"{name} in {type(module).__name__}: usp attention does not compute {feature}; "
                "use a model, or a config, without it"
            )
