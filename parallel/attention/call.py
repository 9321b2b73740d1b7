"""One attention across ranks as plain values, and what a rank derives from them.

A custom operator takes tensors and text, no meshes and shards. So a call is written as text, and
read back once.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import DeviceMesh

from longtake.parallel.attention.all_to_all import UlyssesGroup
from longtake.parallel.attention.mask import Mask, Spans, TokenOrder
from longtake.parallel.attention.ring import RingGroup
from longtake.parallel.attention.schedule import RingSchedule
from longtake.parallel.heads import HeadShards
from longtake.parallel.kernels.attend import HeadRuns, attend, attend_backward
from longtake.parallel.kernels.kernel import KernelOptions, SavedTensors
from longtake.parallel.kernels.table import kernel_named
from longtake.parallel.mesh import RING_AXIS, ULYSSES_AXIS, axis_degree, axis_rank
from longtake.parallel.shards import TokenShards
from longtake.parallel.torch_private import group_of


@dataclass(frozen=True)
class Axis:
    """This rank's group along an axis of the mesh.

    Attributes:
        rank: This rank in the group.
        degree: Number of ranks.
        group: Name of the process group; empty if the axis has none.
    """

    rank: int = 0
    degree: int = 1
    group: str = ""

    @property
    def process_group(self) -> dist.ProcessGroup | None:
        """The process group; None if the axis has none."""
        return group_of(self.group) if self.group else None

    @classmethod
    def of(cls, mesh: DeviceMesh | None, name: str) -> Axis:
        """This rank's group along an axis of a mesh; a single process without a mesh."""
        if mesh is None:
            return cls()
        group = str(mesh.get_group(name).group_name)
        return cls(axis_rank(mesh, name), axis_degree(mesh, name), group)


@dataclass(frozen=True)
class AttentionCall:
    """What a rank must know of an attention, besides its tensors.

    Attributes:
        ring: The ring.
        ulysses: The Ulysses group.
        queries: Positions of each sequence rank's query tokens, in the order in which it holds
            them.
        keys: Positions of each sequence rank's key tokens, likewise.
        num_heads: Number of query heads (N).
        num_kv_heads: Number of KV heads (M).
        mask: The keys that a query sees.
        kernel: Name of the local kernel.
        options: Options of the kernel, not causal; the tile decides.
    """

    ring: Axis
    ulysses: Axis
    queries: tuple[Spans, ...]
    keys: tuple[Spans, ...]
    num_heads: int
    num_kv_heads: int
    mask: Mask
    kernel: str
    options: KernelOptions

    @classmethod
    def of(
        cls,
        mesh: DeviceMesh | None,
        owners: tuple[TokenShards, TokenShards],
        heads: tuple[int, int],
        mask: Mask,
        kernel: str,
        options: KernelOptions,
    ) -> AttentionCall:
        """The call of this rank of a mesh.

        Args:
            mesh: The mesh; None for a single process.
            owners: Ownership of the queries and of the keys.
            heads: Numbers of query heads and of KV heads.
            mask: The keys that a query sees.
            kernel: Name of the local kernel.
            options: Options of the kernel.
        """
        axes = Axis.of(mesh, RING_AXIS), Axis.of(mesh, ULYSSES_AXIS)
        queries, keys = owners
        return cls(*axes, queries.ranges, keys.ranges, *heads, mask, kernel, options)

    def encode(self) -> str:
        """The call as text. torch.compile traces this but for the last step."""
        text: str = _dump(
            (
                (self.ring.rank, self.ring.degree, self.ring.group),
                (self.ulysses.rank, self.ulysses.degree, self.ulysses.group),
                _edges(self.queries),
                None if self.keys is self.queries else _edges(self.keys),
                self.num_heads,
                self.num_kv_heads,
                (self.mask.causal, self.mask.document_ends),
                self.kernel,
                (self.options.scale, self.options.causal, self.options.deterministic),
            )
        )
        return text

    @staticmethod
    @lru_cache(maxsize=32)
    def decode(text: str) -> AttentionCall:
        """The call that :meth:`encode` wrote; the same object for the same text."""
        ring, ulysses, queries, keys, num_heads, num_kv_heads, mask, *rest = json.loads(text)
        (causal, document_ends), (kernel, options) = mask, rest
        query_spans = _spans(queries)
        return AttentionCall(
            Axis(*ring),
            Axis(*ulysses),
            query_spans,
            query_spans if keys is None else _spans(keys),
            num_heads,
            num_kv_heads,
            Mask(causal, tuple(document_ends)),
            kernel,
            KernelOptions(*options),
        )

    @property
    def num_ranks(self) -> int:
        """Number of ranks of the sequence."""
        return self.ring.degree * self.ulysses.degree

    @property
    def num_own_keys(self) -> int:
        """Key tokens of this rank."""
        rank = self.ring.rank * self.ulysses.degree + self.ulysses.rank
        return sum(map(len, self.keys[rank]))

    @cached_property
    def heads(self) -> HeadShards:
        """The heads of each Ulysses rank."""
        return HeadShards.even(self.num_heads, self.num_kv_heads, self.ulysses.degree)

    @cached_property
    def query_order(self) -> TokenOrder:
        """The order in which this rank holds its group's queries."""
        return self._order(self.queries, self.ring.rank)

    @cached_property
    def key_order(self) -> TokenOrder:
        """The order in which this rank holds its group's keys."""
        return self._order(self.keys, self.ring.rank)

    @cached_property
    def schedule(self) -> RingSchedule:
        """The blocks of the ring."""
        queries, keys = (
            tuple(self._order(spans, ring_rank).sorted for ring_rank in range(self.ring.degree))
            for spans in (self.queries, self.keys)
        )
        return RingSchedule.of(self.mask, queries, keys)

    @property
    def ulysses_group(self) -> UlyssesGroup:
        """This rank's Ulysses group, which must have a process group."""
        group = self.ulysses.process_group
        assert group is not None
        rank, by_rank = self.ulysses.rank, self.mask.hides
        return UlyssesGroup(group, rank, *self._group_tokens, self.heads, by_rank)

    @property
    def ring_group(self) -> RingGroup:
        """This rank's ring."""
        return RingGroup(self.ring.process_group, self.ring.rank, self.schedule)

    def attend(
        self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, causal: bool
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Local attention of this rank's heads over one tile, ``[B, tokens, heads, H]`` each."""
        options = self._causal_options if causal else self.options
        return attend(kernel_named(self.kernel), q, k, v, options, self._head_runs)

    def attend_backward(
        self, grad_out: torch.Tensor, saved: SavedTensors, causal: bool
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Gradients of one tile."""
        options = self._causal_options if causal else self.options
        kernel = kernel_named(self.kernel)
        return attend_backward(kernel, grad_out, saved, options, self._head_runs)

    @cached_property
    def _causal_options(self) -> KernelOptions:
        return replace(self.options, causal=True)

    @cached_property
    def _head_runs(self) -> HeadRuns:
        return self.heads.runs(self.ulysses.rank)

    @cached_property
    def _group_tokens(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Query and key tokens of each rank of this Ulysses group."""
        queries, keys = (
            tuple(sum(map(len, own)) for own in self._members(spans, self.ring.rank))
            for spans in (self.queries, self.keys)
        )
        return queries, keys

    def _members(self, spans: tuple[Spans, ...], ring_rank: int) -> tuple[Spans, ...]:
        """Of all sequence ranks, those of one Ulysses group."""
        first = ring_rank * self.ulysses.degree
        return spans[first : first + self.ulysses.degree]

    def _order(self, spans: tuple[Spans, ...], ring_rank: int) -> TokenOrder:
        """The tokens of a Ulysses group as tokens_to_heads orders them, here or on that ring rank.

        Without a mask they may be in any order, and stay in this one.
        """
        members = list(self._members(spans, ring_rank))
        if not self.mask.hides:
            members.insert(0, members.pop(self.ulysses.rank))
        held = tuple(span for member in members for span in member)
        return TokenOrder(held, ascends=self.mask.hides)


@lru_cache(maxsize=32)
def known_call(call: AttentionCall) -> AttentionCall:
    """The same call, which remembers what was derived from it."""
    return call


def _edges(tokens: tuple[Spans, ...]) -> tuple[tuple[tuple[int, int], ...], ...]:
    return tuple(tuple((span.start, span.stop) for span in spans) for spans in tokens)


def _spans(edges: list[list[list[int]]]) -> tuple[Spans, ...]:
    return tuple(tuple(range(start, stop) for start, stop in own) for own in edges)


@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]
def _dump(fields: tuple[Any, ...]) -> str:
    """JSON of plain values, which are constants to torch.compile."""
    return json.dumps(fields)
