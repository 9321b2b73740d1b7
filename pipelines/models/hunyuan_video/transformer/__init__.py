"""The transformer on one rank: attention across ranks, rotary embedding, denoiser."""
