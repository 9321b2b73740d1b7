"""A LLaMA of transformers, split over ranks: attention, tensor parallelism, recomputation, ZeRO."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor, Replicate, distribute_module
from torch.distributed.tensor.parallel import (
    ColwiseParallel,
    ParallelStyle,
    PrepareModuleInput,
    RowwiseParallel,
    parallelize_module,
)
from torch.utils.checkpoint import CheckpointPolicy, create_selective_checkpoint_contexts
from transformers import LlamaConfig, LlamaForCausalLM

from examples.long_context.layout import Meshes
from examples.long_context.options import Recompute, Zero
from longtake.errors import LayoutError, RequestError
from longtake.parallel.plugs.transformers import set_usp_attention

VOCABULARY = 256
"""Tokens are bytes."""


def make_config(layers: int, width: int, heads: int, kv_heads: int) -> LlamaConfig:
    """The configuration of a LLaMA over bytes.

    Raises:
        RequestError: The sizes do not fit each other.
    """
    if width % heads or (width // heads) % 2:
        raise RequestError(
            f"width={width} must be an even multiple of heads={heads}, for RoPE turns pairs of a "
            f"head's dimensions: try --width {64 * heads}"
        )
    if heads % kv_heads:
        raise RequestError(f"kv_heads={kv_heads} must divide heads={heads}: try --kv-heads {heads}")
    return LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=width,
        intermediate_size=3 * width,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        use_cache=False,
    )


def check_tensor_parallel(config: LlamaConfig, tp: int) -> None:
    """Check that every tensor-parallel rank gets as many heads and columns as the others.

    Raises:
        LayoutError: It does not.
    """
    for count, name in (
        (config.num_attention_heads, "query heads"),
        (config.num_key_value_heads, "KV heads"),
        (config.intermediate_size, "columns of the MLP"),
        (config.vocab_size, "tokens of the vocabulary"),
    ):
        if count % tp:
            raise LayoutError(
                f"tp={tp} does not divide {count} {name}: lower tp and raise ulysses or ring, "
                "which take any number of heads"
            )


def make_model(config: LlamaConfig, seed: int) -> LlamaForCausalLM:
    """A model with random weights, the same on every rank."""
    torch.manual_seed(seed)
    model = LlamaForCausalLM(config)
    set_usp_attention(model)
    return model


def parallelize(
    model: LlamaForCausalLM,
    meshes: Meshes,
    *,
    zero: Zero = 3,
    recompute: Recompute = "nothing",
    dtype: torch.dtype = torch.float32,
) -> None:
    """Split a model over ranks, in place. Tensor parallelism comes first and ZeRO last.

    Args:
        model: The whole model, on the CPU. Its parts are moved to this rank's device.
        meshes: This rank's groups.
        zero: 3 to free a layer's gathered weights after its forward pass; 2 to keep them until its
            backward pass, which saves a gather.
        recompute: What the backward pass computes again instead of the forward pass saving it.
        dtype: Type of activations and gathered weights. Weights, gradients, optimizer: float32.
    """
    if meshes.weights["tp"].size() > 1:
        apply_tensor_parallel(model, meshes.weights["tp"])
    if recompute != "nothing":
        # Renamed in transformers 5: the old name warns in new versions.
        enable = getattr(model, "activation_checkpointing_enable", None)
        (enable or model.gradient_checkpointing_enable)(recompute_options(recompute))
    shard = partial(
        fully_shard,
        mesh=meshes.weights["shard"],
        mp_policy=MixedPrecisionPolicy(param_dtype=dtype, reduce_dtype=torch.float32),
    )
    for layer in model.model.layers:
        shard(layer, reshard_after_forward=zero == 3)
    shard(model)  # the embedding and the head; their backward pass follows at once
    sum_gradients(model)


def apply_tensor_parallel(model: LlamaForCausalLM, mesh: DeviceMesh) -> None:
    """Split each layer's heads and columns (Megatron-LM, arXiv 1909.08053).

    A layer sends two all-reduces in its forward pass and two in its backward pass.
    """
    layer_plan: dict[str, ParallelStyle] = {
        "self_attn": PrepareModuleInput(
            input_kwarg_layouts={"hidden_states": Replicate()},
            desired_input_kwarg_layouts={"hidden_states": Replicate()},
        ),
        "self_attn.q_proj": ColwiseParallel(),
        "self_attn.k_proj": ColwiseParallel(),
        "self_attn.v_proj": ColwiseParallel(),
        "self_attn.o_proj": RowwiseParallel(),
        "mlp": PrepareModuleInput(input_layouts=Replicate(), desired_input_layouts=Replicate()),
        "mlp.gate_proj": ColwiseParallel(),
        "mlp.up_proj": ColwiseParallel(),
        "mlp.down_proj": RowwiseParallel(),
    }
    for layer in model.model.layers:
        parallelize_module(layer, mesh, layer_plan)
        replicate(layer.input_layernorm, mesh)
        replicate(layer.post_attention_layernorm, mesh)
    replicate(model.model.norm, mesh)
    parallelize_module(
        model,
        mesh,
        {
            "model.embed_tokens": RowwiseParallel(input_layouts=Replicate()),
            "lm_head": ColwiseParallel(use_local_output=False),  # for loss_parallel
        },
    )


def replicate(module: nn.Module, mesh: DeviceMesh) -> None:
    """Keep a module whole on every rank, as DTensors.

    All parameters are then of one mesh: fused optimizers and gradient norms take them together.
    """

    def to_dtensor(_: nn.Module, inputs: tuple[Any, ...], mesh: DeviceMesh) -> Any:
        return DTensor.from_local(inputs[0], mesh, [Replicate()], run_check=False)

    def to_local(_: nn.Module, output: Any, __: DeviceMesh) -> Any:
        return output.to_local()

    distribute_module(module, mesh, input_fn=to_dtensor, output_fn=to_local)


def recompute_options(recompute: Recompute) -> dict[str, Any]:
    """Options of :func:`torch.utils.checkpoint.checkpoint` for every layer.

    "all-but-attention" saves attention's outputs: for long sequences attention is nearly all of a
    layer's work and communication. With N query and M KV heads of size H, and e bytes a number,
    they take ``N * H * e + 4 * N`` bytes a token and layer for the output and its log-sum-exp, and
    ``2 * (N + M) * H * e`` more with Ulysses: q, K, V and the output of this rank's heads.
    """
    if recompute == "all":
        return {"use_reentrant": False}
    contexts = partial(create_selective_checkpoint_contexts, _save_attention)
    return {"use_reentrant": False, "context_fn": contexts}


def _save_attention(_: Any, operator: Any, *__: Any, **___: Any) -> CheckpointPolicy:
    if operator is torch.ops.longtake.usp_attention.default:
        return CheckpointPolicy.MUST_SAVE
    return CheckpointPolicy.PREFER_RECOMPUTE


def sum_gradients(model: nn.Module) -> None:
    """Make FSDP2 sum gradients over ranks instead of averaging them.

    Each rank's loss is a sum over its own tokens, divided by the labels of the whole batch. The sum
    over ranks is then the batch's mean loss, however many tokens each rank holds. Averages of
    averages are not, unless all ranks hold the same number.
    """
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.set_gradient_divide_factor(1.0)
            module.set_force_sum_reduction_for_comms(True)  # gloo has no other reduction
