"""Exact attention over a sequence that is split across ranks (USP, arXiv 2405.07719).

Works on tensors and process groups and knows no model. Each rank holds some tokens of the
sequence; every token attends to all others, or to those before it, as if one process held the whole
sequence. Attention is differentiable::

    import torch.distributed as dist
    from longtake.parallel import ParallelDims, TokenShards, usp_attention

    dist.init_process_group("nccl")                    # or "gloo", on CPUs
    dims = ParallelDims(ring_degree=2, ulysses_degree=4)
    mesh = dims.build_mesh("cuda")                     # all 8 ranks call this
    shards = TokenShards.zigzag(num_tokens, dims)      # any number of tokens

    q, k, v = (shards.split(x, mesh, dim=1) for x in (q, k, v))   # [B, S, N, H] -> [B, s, N, H]
    out = usp_attention(q, k, v, mesh=mesh, shards=shards, causal=True)        # [B, s, N, H]
    positions = shards.positions(mesh)                 # [s], of this rank's tokens

The number of heads and of tokens need not divide by the number of ranks. Cross attention takes
``kv_shards``; packed documents, ``document_lengths``. ``shards.gather`` gathers a result,
``count_traffic`` counts what a rank sends, and ``KERNELS`` lists the local attention kernels. The
full example is examples/attention.py.

``longtake.parallel.plugs`` puts this into decoders of transformers, blocks of diffusers, and models
that call torch's ``scaled_dot_product_attention``.

Names are imported on first use: ``ParallelDims`` and ``TokenShards`` by themselves import no torch.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
