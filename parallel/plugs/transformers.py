"""USP as an attention implementation of Hugging Face transformers, named "usp".

::

    set_usp_attention(model)
    sequence = ShardedSequence(mesh, TokenShards.zigzag(num_tokens, dims))
    loss = model(**causal_lm_inputs(sequence, tokens)).loss
    loss.backward()  # then sum the gradients over the ranks of the sequence

A model passes keyword arguments of its forward on to its attention function; ``usp`` is one. So
every call names the sequence that it works on, and gradient checkpointing repeats it with the same.

Legend: B batch, S/s tokens of the whole sequence / of this rank, N query heads, M KV heads, H head
size.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from transformers import (
    AttentionInterface,
    AttentionMaskInterface,
    PreTrainedModel,
    __version__,
)

from longtake.errors import LayoutError, ModelError, TensorError
from longtake.parallel.plugs.sequence import IGNORED_LABEL, ShardedSequence

NAME = "usp"
"""The name of the attention implementation."""

_LAYER_TYPES = {"full_attention", "sliding_attention", "chunked_attention", "mlp", "moe"}
"""Layer types of a config in which tokens meet in transformers' attention functions, or nowhere."""

_NEIGHBORS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.RNNBase)
"""Modules in which a token meets its neighbors, who may be on another rank."""

_MASKS = {"causal_mask_function", "bidirectional_mask_function", "and_mask"}
"""transformers' mask functions for causal attention, full attention, and packed documents."""

_UNSUPPORTED = {
    "softcap": "capped scores",
    "s_aux": "attention sinks",
    "sinks": "attention sinks",
    "position_bias": "a bias of the scores",
    "indices": "sparse attention",
    "block_indices": "sparse attention",
    "cache": "a paged KV cache",
    "output_attentions": "the attention weights",
    "cu_seq_lens_q": "cu_seq_lens (documents are packed by ShardedSequence's document_lengths)",
}
"""Keyword arguments of attention functions for what is not computed, and what that is."""


def set_usp_attention(model: PreTrainedModel) -> None:
    """Make a model compute its attention across ranks.

    Registers "usp" with transformers, and sets it as the model's attention implementation. The
    model's forward then needs ``usp=ShardedSequence(...)`` and ``position_ids``, besides this
    rank's tokens; :func:`causal_lm_inputs` makes its arguments. A forward pre-hook refuses ``usp``
    without positions, with which every rank would count its tokens from 0.

    Args:
        model: A decoder or an encoder whose tokens meet in attention alone.

    Raises:
        ModelError: The model does not call transformers' attention functions, takes no positions,
            has layers other than attention in which tokens meet, or adds a load-balancing loss;
            transformers is older than 5.
    """
    if int(__version__.partition(".")[0]) < 5:
        raise ModelError(
            f"transformers {__version__} does not tell usp attention that a model adds to the "
            "causal mask: install transformers>=5"
        )
    if "position_ids" not in inspect.signature(model.forward).parameters:
        raise ModelError(
            f"{type(model).__name__} takes no position_ids, so that every rank would count its "
            "tokens from 0: take a model that does"
        )
    for module in model.modules():
        _check_module(module)
    AttentionInterface.register(NAME, usp_attention_forward)
    AttentionMaskInterface.register(NAME, usp_mask)
    model.set_attn_implementation(NAME)
    if _check_inputs not in model._forward_pre_hooks.values():
        model.register_forward_pre_hook(_check_inputs, with_kwargs=True)


def causal_lm_inputs(
    sequence: ShardedSequence, input_ids: torch.Tensor, labels: torch.Tensor | None = None
) -> dict[str, Any]:
    """Arguments of a causal language model's forward for this rank's tokens.

    The loss is this rank's part: the parts of all ranks of the sequence sum to the mean loss over
    the whole sequence, and the gradients of the weights to its gradients.

    Args:
        sequence: The sequence.
        input_ids: ``[B, S]``, the whole sequence, the same on every rank.
        labels: ``[B, S]``, as models take them: not shifted, -100 for a token that is not to be
            predicted; ``input_ids`` if None.

    Returns:
        ``input_ids`` ``[B, s]``; ``position_ids`` ``[1, s]``; ``shift_labels`` ``[B, s]``, with an
        empty ``labels``, since a model would shift those inside the shard; ``num_items_in_batch``,
        the number of labels of the whole sequence; ``use_cache``, False; ``usp``, the sequence.

    Raises:
        LayoutError: A rank has no token: transformers runs no model on an empty sequence.
        TensorError: A shape other than ``[B, S]``.
    """
    if min(sequence.shards.counts) == 0:
        raise LayoutError(
            f"{sequence.shards.num_tokens} tokens on {sequence.shards.num_ranks} ranks leave a "
            "rank without any, on which transformers runs no model: take fewer ranks"
        )
    shifted = sequence.shift_labels(input_ids if labels is None else labels)
    return {
        "input_ids": sequence.split(input_ids, dim=1),
        "position_ids": sequence.positions()[None].to(input_ids.device),
        "labels": shifted.new_empty(0),
        "shift_labels": sequence.split(shifted, dim=1).contiguous(),
        "num_items_in_batch": (shifted != IGNORED_LABEL).sum(),
        "use_cache": False,
        "usp": sequence,
    }


def usp_attention_forward(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    *,
    usp: ShardedSequence | None = None,
    scaling: float | None = None,
    is_causal: bool | None = None,
    **options: Any,
) -> tuple[torch.Tensor, None]:
    """The attention function "usp", as transformers calls it.

    Args:
        module: The attention module; its ``is_causal`` holds where the argument is None.
        query: ``[B, N, s, H]``, this rank's queries.
        key: ``[B, M, s, H]``, this rank's keys.
        value: ``[B, M, s, H]``, this rank's values.
        attention_mask: What :func:`usp_mask` returned.
        usp: The sequence.
        scaling: Factor of the scores; ``H ** -0.5`` if None.
        is_causal: Whether a token sees only those at or before its position.
        options: What the model passes to every attention function.

    Returns:
        ``[B, s, N, H]``, and None for the attention weights.

    Raises:
        LayoutError: ``usp`` is missing.
        TensorError: There is a mask, or there are keys of other tokens.
        ModelError: The model asks for what is not computed, such as dropout or a sliding window.
    """
    if not isinstance(usp, ShardedSequence):
        raise LayoutError(
            f"usp={usp!r} in {type(module).__name__}: pass usp=ShardedSequence(mesh, shards) to a "
            "model whose forward passes its keyword arguments on to attention"
        )
    _check_options(module, options)
    _check_mask(module, attention_mask, options.get("sliding_window"), usp.shards.num_tokens)
    if key.shape[2] != query.shape[2]:
        raise TensorError(
            f"{key.shape[2]} keys and {query.shape[2]} queries in {type(module).__name__}: usp "
            "attention has neither a KV cache nor cross attention; pass use_cache=False, and no "
            "past_key_values"
        )
    if is_causal is None:
        is_causal = bool(getattr(module, "is_causal", True))
    q_BsNH, k_BsMH, v_BsMH = (tensor.transpose(1, 2) for tensor in (query, key, value))
    return usp.attend(q_BsNH, k_BsMH, v_BsMH, causal=is_causal, scale=scaling), None


def usp_mask(
    *,
    attention_mask: torch.Tensor | None = None,
    mask_function: Callable[..., Any],
    use_vmap: bool,
    local_size: int | None = None,
    **_: Any,
) -> torch.Tensor | None:
    """The mask function "usp", as transformers calls it.

    Args:
        attention_mask: ``[B, s]`` bool: the tokens that are not padding.
        mask_function: The mask that the model wants. Positions that are not consecutive, as those
            of a shard are not, make transformers add the one of packed documents; it is
            ``ShardedSequence`` that says where documents end.
        use_vmap: Whether the model adds to the mask.
        local_size: Length of a sliding window or chunk.
        _: Sizes.

    Returns:
        None. If there is a window, a tensor of its length in one dimension, since only the
        attention function knows whether the whole sequence is longer.

    Raises:
        TensorError: There is padding.
        ModelError: The mask is neither causal nor full attention.
    """
    if attention_mask is not None and not attention_mask.all():
        raise TensorError(_mask_error(attention_mask))
    if use_vmap or mask_function.__name__ not in _MASKS:
        raise ModelError(
            f"a mask of the model's own ({mask_function.__name__}): usp attention is causal, or "
            "between all tokens; leave out the inputs that ask for another"
        )
    return None if local_size is None else torch.empty(1, dtype=torch.bool).expand(local_size)


def _mask_error(mask: torch.Tensor) -> str:
    return (
        f"attention_mask of shape {tuple(mask.shape)}: usp attention hides no tokens; leave it "
        "out, and pack sequences of several lengths as documents (document_lengths)"
    )


def _check_inputs(module: nn.Module, _: tuple[Any, ...], inputs: dict[str, Any]) -> None:
    """Refuse what a model would compute of this rank's tokens, instead of the whole sequence."""
    if inputs.get("usp") is None:
        return
    if inputs.get("position_ids") is None:
        raise LayoutError(
            f"usp without position_ids in {type(module).__name__}: every rank would count its "
            "tokens from 0; pass position_ids=sequence.positions()[None], as causal_lm_inputs does"
        )
    if inputs.get("output_router_logits") and inputs.get("labels") is not None:
        raise ModelError(_router_error(module))


def _router_error(module: nn.Module) -> str:
    return (
        f"output_router_logits in {type(module).__name__}: every rank would add a load-balancing "
        "loss of its own tokens; set it to False in the model's config, or pass it to a forward "
        "without labels, and make a loss of router_logits"
    )


def _check_module(module: nn.Module) -> None:
    """Refuse a module in which tokens meet outside of transformers' attention functions."""
    if isinstance(module, _NEIGHBORS):
        raise ModelError(
            f"{type(module).__name__} in the model: a token would meet neighbors that are on "
            "another rank; take a model, or a part of it, whose tokens meet in attention alone"
        )
    if hasattr(module, "create_position_ids_from_input_ids"):
        raise ModelError(
            f"{type(module).__name__} does not count positions from 0: take a model that does"
        )
    if not isinstance(module, PreTrainedModel):
        return
    other = {*(getattr(module.config, "layer_types", None) or ())} - _LAYER_TYPES
    if other or module._is_stateful:
        raise ModelError(
            f"{type(module).__name__} has layers of {', '.join(sorted(other)) or 'recurrence'}: "
            "usp attention takes models whose tokens meet in attention alone"
        )
    if getattr(module.config, "output_router_logits", False):
        raise ModelError(_router_error(module))
    if not module._can_set_attn_implementation():
        raise ModelError(
            f"{type(module).__name__} does not call transformers' AttentionInterface: call "
            "longtake.parallel.usp_attention in a model of your own"
        )


def _check_options(module: nn.Module, options: dict[str, Any]) -> None:
    """Refuse what an attention function is asked for and this one does not compute."""
    if options.get("dropout"):
        raise ModelError(
            f"dropout={options['dropout']} in {type(module).__name__}: usp attention drops no "
            "attention weights; set the attention dropout of the model's config to 0"
        )
    for name, feature in _UNSUPPORTED.items():
        if (value := options.get(name)) is not None and value is not False:
            raise ModelError(
                f"{name} in {type(module).__name__}: usp attention does not compute {feature}; "
                "take a model, or a config, without it"
            )


def _check_mask(
    module: nn.Module, mask: torch.Tensor | None, sliding_window: int | None, num_tokens: int
) -> None:
    """Refuse a mask, and a window that is shorter than the sequence."""
    if mask is not None and mask.ndim != 1:
        raise TensorError(_mask_error(mask))
    for window in (sliding_window, None if mask is None else len(mask)):
        if window is not None and window < num_tokens:
            raise ModelError(
                f"a window of {window} tokens in {type(module).__name__}, and {num_tokens} tokens: "
                "usp attention has no window; set the one of the model's config to None, or to at "
                "least the length of the sequence"
            )
