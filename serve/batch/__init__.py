"""Renders a shots file."""
