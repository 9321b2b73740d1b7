"""Jinja templates, style sheet and script of the pages. Values are escaped."""

from __future__ import annotations

from pathlib import Path

from jinja2 import Environment, PackageLoader, StrictUndefined

TEMPLATES = Environment(
    loader=PackageLoader("longtake.serve"), autoescape=True, undefined=StrictUndefined
)


def source_of(name: str) -> str:
    """The text of a file in this folder, unrendered."""
    return (Path(__file__).parent / name).read_text(encoding="utf-8")
