"""Sizes in messages."""

from __future__ import annotations


def format_bytes(num_bytes: float) -> str:
    """A size in short form, in decimal units as the Hub has them: 28.9 GB, 10.6 MB."""
    return f"{num_bytes / 1e9:.1f} GB" if num_bytes >= 1e9 else f"{num_bytes / 1e6:.1f} MB"
