"""Counts a model's work on the meta device, for families without arithmetic of their own."""
