"""Wan's released architectures and one with odd sizes, as arguments of diffusers' class."""

from __future__ import annotations

from typing import Any

_14B: dict[str, Any] = {
    "num_attention_heads": 40,
    "attention_head_dim": 128,
    "ffn_dim": 13824,
    "num_layers": 40,
}
_I2V: dict[str, Any] = {**_14B, "in_channels": 36, "image_dim": 1280, "added_kv_proj_dim": 5120}

ARCHITECTURES: dict[str, dict[str, Any]] = {
    "2.1-t2v-1.3b": {**_14B, "num_attention_heads": 12, "ffn_dim": 8960, "num_layers": 30},
    "2.1-t2v-14b": _14B,
    "2.1-i2v-14b": _I2V,
    "2.1-flf2v-14b": {**_I2V, "pos_embed_seq_len": 514},
    "2.2-t2v-a14b": _14B,
    "2.2-i2v-a14b": {**_14B, "in_channels": 36},
    "2.2-ti2v-5b": {
        "num_attention_heads": 24,
        "attention_head_dim": 128,
        "ffn_dim": 14336,
        "num_layers": 30,
        "in_channels": 48,
        "out_channels": 48,
    },
    "odd": {
        "patch_size": (2, 3, 3),
        "num_attention_heads": 5,
        "attention_head_dim": 14,
        "in_channels": 12,
        "out_channels": None,
        "text_dim": 20,
        "freq_dim": 10,
        "ffn_dim": 90,
        "num_layers": 3,
        "cross_attn_norm": False,
        "image_dim": 24,
        "added_kv_proj_dim": 70,
        "pos_embed_seq_len": 34,
    },
}

PARAMETERS = {
    "2.1-t2v-1.3b": 1.419e9,
    "2.1-t2v-14b": 14.288e9,
    "2.1-i2v-14b": 16.395e9,
    "2.2-ti2v-5b": 5.000e9,
}
"""Published sizes, as counted from modules."""
