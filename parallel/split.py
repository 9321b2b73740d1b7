"""Tensors cut by who owns which tokens, and brought together again."""

from __future__ import annotations

import torch
from torch.distributed.device_mesh import DeviceMesh

from longtake.errors import LayoutError, TensorError
from longtake.parallel.dims import RING_AXIS, ULYSSES_AXIS
from longtake.parallel.exchange import refuse_gradient, swap_point_to_point
from longtake.parallel.mesh import axis_degree, axis_rank, sequence_rank
from longtake.parallel.shards import TokenShards


def split(
    shards: TokenShards, tensor: torch.Tensor, mesh: DeviceMesh | None, dim: int
) -> torch.Tensor:
    """See :meth:`TokenShards.split`."""
    check_mesh(shards, mesh)
    dim = _token_dim(tensor, dim, shards.num_tokens, "the whole sequence has")
    own = shards.ranges[sequence_rank(mesh)]
    pieces = [tensor.narrow(dim, span.start, len(span)) for span in own]
    if not pieces:
        return tensor.narrow(dim, 0, 0)
    return pieces[0] if len(pieces) == 1 else torch.cat(pieces, dim=dim)


def gather(
    shards: TokenShards, tensor: torch.Tensor, mesh: DeviceMesh | None, dim: int
) -> torch.Tensor:
    """See :meth:`TokenShards.gather`."""
    check_mesh(shards, mesh)
    refuse_gradient(tensor)
    rank = sequence_rank(mesh)
    dim = _token_dim(tensor, dim, shards.counts[rank], f"sequence rank {rank} owns")
    held = tensor.movedim(dim, 0)
    held = _gather_axis(held, ulysses_counts(shards, mesh), mesh, ULYSSES_AXIS)
    held = _gather_axis(held, ring_counts(shards, mesh), mesh, RING_AXIS)
    return _in_sequence(shards, held).movedim(0, dim).contiguous()


def check_mesh(shards: TokenShards, mesh: DeviceMesh | None) -> None:
    """Refuse a mesh whose sequence is split over another number of ranks."""
    if mesh is None and shards.num_ranks > 1:
        raise LayoutError(
            f"mesh=None, and shards of {shards.num_ranks} ranks: build the mesh with "
            "ParallelDims.build_mesh, or the shards for one rank"
        )
    ring_degree, ulysses_degree = axis_degree(mesh, RING_AXIS), axis_degree(mesh, ULYSSES_AXIS)
    if ring_degree * ulysses_degree != shards.num_ranks:
        raise LayoutError(
            f"shards of {shards.num_ranks} ranks on a mesh of ring_degree={ring_degree} x "
            f"ulysses_degree={ulysses_degree}: build both from the same ParallelDims"
        )


def ulysses_counts(shards: TokenShards, mesh: DeviceMesh | None) -> tuple[int, ...]:
    """Tokens of each rank of this rank's Ulysses group."""
    return shards.stations(axis_degree(mesh, ULYSSES_AXIS))[axis_rank(mesh, RING_AXIS)]


def ring_counts(shards: TokenShards, mesh: DeviceMesh | None) -> tuple[int, ...]:
    """Tokens of each station of the ring: the sum over one Ulysses group."""
    return tuple(sum(station) for station in shards.stations(axis_degree(mesh, ULYSSES_AXIS)))


def _in_sequence(shards: TokenShards, tensor: torch.Tensor) -> torch.Tensor:
    """Put tokens (dimension 0) that stand in the order of the ranks in the sequence's order."""
    spans = [span for own in shards.ranges for span in own]
    pieces = torch.split(tensor, [len(span) for span in spans])
    order = sorted(range(len(spans)), key=lambda piece: spans[piece].start)
    if order == list(range(len(spans))):
        return tensor
    return torch.cat([pieces[piece] for piece in order])


def _token_dim(tensor: torch.Tensor, dim: int, num_tokens: int, owner: str) -> int:
    """Check the dimension of the tokens and count it from the front."""
    if not -tensor.ndim <= dim < tensor.ndim:
        raise TensorError(
            f"dim={dim} is not a dimension of a tensor of shape {tuple(tensor.shape)}: "
            f"pass {-tensor.ndim}..{tensor.ndim - 1}"
        )
    if tensor.shape[dim] != num_tokens:
        raise TensorError(
            f"shape {tuple(tensor.shape)} has {tensor.shape[dim]} tokens in dim={dim}, "
            f"{owner} {num_tokens}: check dim, or build the shards for this length"
        )
    return dim % tensor.ndim


def _gather_axis(
    tensor: torch.Tensor, counts: tuple[int, ...], mesh: DeviceMesh | None, axis: str
) -> torch.Tensor:
    """Concatenate the tensors of all ranks along one mesh axis, in dimension 0."""
    if mesh is None or len(counts) == 1:
        return tensor
    rank = axis_rank(mesh, axis)
    whole = tensor.new_empty((sum(counts), *tensor.shape[1:]))
    parts = list(torch.split(whole, list(counts)))
    parts[rank].copy_(tensor)
    peers = [peer for peer in range(len(counts)) if peer != rank]
    swap_point_to_point(
        sends=[(parts[rank], peer) for peer in peers],
        receives=[(parts[peer], peer) for peer in peers],
        group=mesh.get_group(axis),
    )()
    return whole
