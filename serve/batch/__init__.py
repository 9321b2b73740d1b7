"""Renders a file of shots."""
