"""Templates of what is read in a browser; all that is put into them is escaped."""

from __future__ import annotations

from jinja2 import Environment, PackageLoader, StrictUndefined

TEMPLATES = Environment(
    loader=PackageLoader("longtake.serve"), autoescape=True, undefined=StrictUndefined
)
