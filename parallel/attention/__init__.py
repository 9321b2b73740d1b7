"""Attention across ranks: exchanges, ring, masks, and the operator that joins them."""
