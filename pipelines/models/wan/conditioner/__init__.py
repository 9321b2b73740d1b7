"""Prompts and pictures to keys of cross attention, on rank 0."""
