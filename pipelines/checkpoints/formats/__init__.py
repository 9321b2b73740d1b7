"""Formats of files of weights: safetensors, zip archives of torch, GGUF."""
