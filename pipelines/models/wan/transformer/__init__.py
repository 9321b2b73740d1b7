"""The transformers on one rank: attention across ranks, rotary embedding, experts, denoiser."""
