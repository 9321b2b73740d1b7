"""Exact attention over a sequence that is split across ranks (USP, arXiv 2405.07719).

Works on tensors and process groups and knows no model. Each rank holds some tokens of the
sequence; every token attends to all others, as if one process held the whole sequence::

    import torch.distributed as dist
    from longtake.parallel import ParallelDims, TokenShards, usp_attention

    dist.init_process_group("nccl")                    # or "gloo", on CPUs
    dims = ParallelDims(ring_degree=2, ulysses_degree=4)
    mesh = dims.build_mesh("cuda")                     # all 8 ranks call this
    shards = TokenShards.even(num_tokens, dims)        # any number of tokens

    q, k, v = (shards.split(x, mesh, dim=1) for x in (q, k, v))   # [B, S, N, H] -> [B, s, N, H]
    out = usp_attention(q, k, v, mesh=mesh, shards=shards)        # [B, s, N, H]
    out = shards.gather(out, mesh, dim=1)                         # [B, S, N, H], on every rank

The number of heads and of tokens need not divide by the number of ranks. Cross attention takes
``kv_shards``. ``count_traffic`` counts what a rank sends; ``KERNELS`` lists the local attention
kernels. The full example is examples/attention.py.

Names are imported on first use: ``ParallelDims`` and ``TokenShards`` by themselves import no torch.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
