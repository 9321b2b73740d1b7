"""The operator of attention in one process: its graph, and what it refuses."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable, Iterator

import pytest
import torch
from torch.autograd import forward_ad
from torch.library import opcheck
from torch.utils._python_dispatch import TorchDispatchMode

from longtake.errors import TensorError
from longtake.parallel import ParallelDims, TokenShards, usp_attention
from longtake.parallel.attention import operator
from longtake.parallel.attention.call import AttentionCall, Axis
from longtake.parallel.attention.mask import Mask
from longtake.parallel.kernels.kernel import KernelOptions
from tests.ranks import random_tensors

SHARDS = TokenShards.even(5, ParallelDims())
DOUBLE_BACKWARD = "usp_attention has no second derivative"
FORWARD_MODE = pytest.mark.filterwarnings("ignore:`torch.jit.script` is:DeprecationWarning")
"""torch builds its forward derivatives with torch.jit."""
TRANSFORM = "usp_attention cannot run inside torch.vmap or a transform of torch.func"


def attention(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    """Causal attention of 5 tokens."""
    return usp_attention(q, k, v, mesh=None, shards=SHARDS, causal=True)


def inputs(*, requires_grad: bool = True) -> list[torch.Tensor]:
    """q, k and v, with 2 query heads for each KV head."""
    tensors = random_tensors(0, [(2, 5, 4, 8), (2, 5, 2, 8), (2, 5, 2, 8)])
    return [tensor.requires_grad_(requires_grad) for tensor in tensors]


class Operators(TorchDispatchMode):
    """Names of our operators, as they are called."""

    def __init__(self) -> None:
        super().__init__()
        self.called: list[str] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        if func.namespace == "longtake":
            self.called.append(str(func))
        return func(*args, **kwargs or {})


def test_a_graph_is_kept_with_gradients_only() -> None:
    with Operators() as operators:
        with_graph = attention(*inputs())
        assert operators.called == ["longtake.usp_attention.default"]
        for mode in (torch.no_grad, torch.inference_mode):
            with mode():
                out = attention(*inputs())
            assert not out.requires_grad and out.grad_fn is None
            assert torch.equal(out, with_graph)
        assert torch.equal(attention(*inputs(requires_grad=False)), with_graph)
    assert operators.called == ["longtake.usp_attention.default"]


@pytest.mark.parametrize("keeps", [True, False])
def test_inputs_are_freed_without_a_graph(keeps: bool) -> None:
    tensors = [tensor * 1 for tensor in inputs()]
    alive = [weakref.ref(tensor) for tensor in tensors]
    with torch.set_grad_enabled(keeps):
        out = attention(*tensors)
    del tensors
    gc.collect()
    assert [reference() is not None for reference in alive] == [keeps] * 3
    assert out.requires_grad == keeps


@pytest.fixture(params=["grad", "vjp", "jacrev", "hessian", "jvp", "vmap", "vmap of a gradient"])
def transformed(request: pytest.FixtureRequest) -> Iterator[Callable[[], object]]:
    """Attention transformed by torch.func, to be called."""
    q, k, v = inputs(requires_grad=False)

    def total(q: torch.Tensor) -> torch.Tensor:
        return attention(q, k, v).square().sum()

    yield {
        "grad": lambda: torch.func.grad(total)(q),
        "vjp": lambda: torch.func.vjp(attention, q, k, v),
        "jacrev": lambda: torch.func.jacrev(total)(q),
        "hessian": lambda: torch.func.hessian(total)(q),
        "jvp": lambda: torch.func.jvp(total, (q,), (q,)),
        "vmap": lambda: torch.vmap(total)(q.unsqueeze(1)),
        "vmap of a gradient": lambda: torch.vmap(total)(q.unsqueeze(1).clone().requires_grad_()),
    }[request.param]


@FORWARD_MODE
def test_function_transforms_are_refused(transformed: Callable[[], object]) -> None:
    with pytest.raises(TensorError, match=TRANSFORM):
        transformed()
    with torch.no_grad(), pytest.raises(TensorError, match=TRANSFORM):
        transformed()


def test_second_derivatives_are_refused() -> None:
    q, k, v = inputs()
    for out in (attention(q, k, v), attention(q, k, v).square()):
        with pytest.raises(TensorError, match=DOUBLE_BACKWARD):
            torch.autograd.grad(out.sum(), q, create_graph=True)
    with pytest.raises(TensorError, match=DOUBLE_BACKWARD):
        torch.autograd.functional.hessian(lambda q: attention(q, k, v).sum(), q)


@FORWARD_MODE
@pytest.mark.parametrize("requires_grad", [True, False])
def test_forward_mode_differentiation_is_refused(requires_grad: bool) -> None:
    q, k, v = inputs(requires_grad=requires_grad)
    with forward_ad.dual_level(), pytest.raises(NotImplementedError, match=r"forward (mode )?AD"):
        attention(forward_ad.make_dual(q, q.detach()), k, v)


def test_batched_gradients_are_refused() -> None:
    q, k, v = inputs()
    out = attention(q, k, v)
    with pytest.raises(RuntimeError, match="not implemented for longtake::usp_attention_backward"):
        torch.autograd.grad(out, q, torch.ones(3, *out.shape), is_grads_batched=True)


@pytest.mark.parametrize("causal", [True, False])
def test_torch_accepts_both_operators(causal: bool) -> None:
    positions = SHARDS.ranges
    call = AttentionCall(
        Axis(), Axis(), positions, positions, 4, 2, Mask(causal), "cpu-flash", KernelOptions(0.3)
    ).encode()
    forward = torch.ops.longtake.usp_attention.default
    for requires_grad, keep in ((True, True), (False, True), (False, False)):
        opcheck(forward, (*inputs(requires_grad=requires_grad), call, keep))
    qkv = inputs(requires_grad=False)
    out, lse, *_ = operator.usp_attention(*qkv, call, True)
    backward = torch.ops.longtake.usp_attention_backward.default
    opcheck(backward, (torch.ones_like(out), qkv, [lse, out], call))


@pytest.mark.parametrize("changed", ["q", "k", "v", "out"])
def test_a_tensor_of_the_graph_that_changed_is_refused(changed: str) -> None:
    tensors = dict(zip("qkv", (tensor * 1 for tensor in inputs()), strict=True))
    tensors["out"] = attention(*tensors.values())
    with pytest.raises(RuntimeError, match="modified"):
        tensors[changed].mul_(2)
        tensors["out"].sum().backward()
