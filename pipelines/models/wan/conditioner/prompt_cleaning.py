"""Cleans prompts before they are tokenized."""

from __future__ import annotations

import html

import ftfy


def clean_prompt(prompt: str) -> str:
    """Repair a prompt's Unicode, resolve its HTML entities, and join its words by single spaces.

    The result is that of diffusers with ftfy installed. Without ftfy, diffusers leaves damaged
    Unicode, curly quotes and full-width letters as they are, and its image-to-video fails; here
    ftfy is required, so that a prompt is cleaned in one way everywhere.
    """
    text = html.unescape(html.unescape(ftfy.fix_text(prompt)))
    return " ".join(text.split())
