"""Prompt and picture to embeddings, on rank 0."""
