"""The page's colors and fonts."""

from __future__ import annotations

from typing import Any

import gradio as gr


def theme() -> Any:
    """A plain theme. The contrast between text and background is at least 4.5."""
    filled = {
        f"button_primary_{part}{state}{mode}": value
        for mode in ("", "_dark")
        for state in ("", "_hover")
        for part, value in {
            "background_fill": "*primary_800" if state else "*primary_700",
            "text_color": "white",
        }.items()
    }
    return gr.themes.Default(
        primary_hue="blue",
        font=["system-ui", "sans-serif"],
        font_mono=["ui-monospace", "monospace"],
    ).set(
        **filled,
        input_placeholder_color="*neutral_500",
        input_placeholder_color_dark="*neutral_400",
        body_text_color_subdued="*neutral_600",
        body_text_color_subdued_dark="*neutral_400",
        block_title_text_color="*neutral_700",
        block_title_text_color_dark="*neutral_200",
    )
