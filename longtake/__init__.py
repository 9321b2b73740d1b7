"""Long videos from diffusion transformers on any number of ranks.

Sequence-parallel attention stands in :mod:`longtake.parallel`.
"""

__version__ = "0.1.0"
