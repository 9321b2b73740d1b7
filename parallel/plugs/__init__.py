"""Plugs: ``usp_attention`` in the places where other libraries take an attention function.

``sequence`` describes a sequence that is split across ranks; ``sdpa`` has the signature of torch's
``scaled_dot_product_attention``; ``transformers`` and ``diffusers`` plug into these libraries. Only
the last two import the library that they are named after.
"""
