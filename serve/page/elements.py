"""Gradio elements of the page."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import gradio as gr

from longtake.configs.field_types import MAX_SEED
from longtake.pipelines.spec import ModelSpec
from longtake.serve.page.form import PICTURE_IDS, Form
from longtake.serve.templates import TEMPLATES

NO_LORA = [("none", "")]
"""Choices of a field that chooses a LoRA before they are listed."""

_PICTURE_LABELS = {"image": "Picture to animate", "last_image": "Last picture"}


@dataclass(frozen=True)
class Inputs:
    """The form's elements.

    Attributes:
        fields: The fields by name, in the form's order.
        draw: Button that draws a random seed.
        estimate: HTML of the estimated time, or of an error in the form.
        generate: Button that submits the form.
    """

    fields: dict[str, Any]
    draw: Any
    estimate: Any
    generate: Any


@dataclass(frozen=True)
class Result:
    """The elements that show one video, and the buttons that act on it."""

    status: Any
    details: Any
    cancel: Any
    retry: Any
    reuse: Any
    delete: Any

    @property
    def actions(self) -> list[Any]:
        """The buttons."""
        return [self.cancel, self.retry, self.reuse, self.delete]


def add_inputs(spec: ModelSpec, form: Form, examples: str) -> Inputs:
    """Add the form's elements to the current Gradio context.

    Args:
        spec: The served model.
        form: Its form.
        examples: HTML of the example prompts; empty if the model has none.
    """
    fields: dict[str, Any] = {}
    fields["prompt"] = gr.Textbox(
        label="Prompt",
        lines=3,
        max_lines=8,
        placeholder="What to show",
        autofocus=True,
        elem_id="prompt",
        elem_classes="field",
    )
    if examples:
        html(examples)
    for name, needed in spec.pictures.items():
        label = _PICTURE_LABELS[name] + ("" if needed == "required" else ", optional")
        html(TEMPLATES.get_template("picture.html").render(id=PICTURE_IDS[name], label=label))
    with gr.Row():
        fields["size"] = _dropdown("size", "Size", form.sizes(), form.sizes()[0][1])
        fields["length"] = _dropdown("length", "Length", form.lengths(), form.default_length)
    with gr.Row(elem_id="seeds"):
        fields["seed"] = _text_field("seed", "Seed", "drawn", max_length=len(str(MAX_SEED)))
        draw = gr.Button("⚄ Draw", size="sm", min_width=90, scale=0)
    with gr.Accordion("More settings", open=False, elem_id="more-settings"):
        for name, scale in zip(form.loras[::2], form.loras[1::2], strict=True):
            with gr.Row():
                fields[name] = _dropdown(name, "LoRA", NO_LORA, "")
                fields[scale] = _text_field(scale, "Scale of the LoRA", "1")
        names = list(form.settings)
        for start in range(0, len(names), 2):
            with gr.Row():
                for name in names[start : start + 2]:
                    fields[name] = _setting(name, form)
    estimate = html(elem_id="estimate")
    generate = gr.Button("Generate", variant="primary", elem_id="generate")
    return Inputs(fields, draw, estimate, generate)


def add_result(status: str) -> Result:
    """Add the elements that show one video.

    Args:
        status: HTML of the status while no video is shown.
    """
    status_html = html(status, elem_id="status")
    with gr.Row(elem_id="actions"):
        buttons = [
            gr.Button(label, size="sm", min_width=90, visible=False)
            for label in ("Cancel", "Retry", "Use these settings", "Delete")
        ]
    return Result(status_html, html(elem_id="details"), *buttons)


def lora_choices(uses: Sequence[str]) -> list[tuple[str, str]]:
    """Choices of a field that chooses a LoRA, as pairs of a label and a value.

    Args:
        uses: What a request may name.
    """
    return [*NO_LORA, *((use.replace("@", ", "), use) for use in uses)]


def html(content: str = "", **options: Any) -> Any:
    """Add HTML without Gradio's style."""
    return gr.HTML(content, padding=False, apply_default_css=False, **options)


def _setting(name: str, form: Form) -> Any:
    """Add a field under "More settings"."""
    label, default, choices = form.settings[name], form.default(name), form.choices(name)
    if not choices:
        return _text_field(name, label, default)
    marked = [f"{each} (default)" if each == default else each for each in choices]
    labels = [("", ""), *zip(marked, choices, strict=True)]
    return _dropdown(name, label, labels, "")


def _dropdown(name: str, label: str, choices: list[tuple[str, str]], value: str) -> Any:
    return gr.Dropdown(
        choices,
        value=value,
        label=label,
        allow_custom_value=True,
        min_width=180,
        elem_id=name,
        elem_classes="field",
    )


def _text_field(name: str, label: str, placeholder: str, **options: Any) -> Any:
    """Add a text field, also for numbers: they are checked with the request."""
    is_text = name == "negative_prompt"
    return gr.Textbox(
        label=label,
        placeholder=placeholder,
        min_width=320 if is_text else 140,
        lines=2 if is_text else 1,
        max_lines=8 if is_text else 1,
        elem_id=name,
        elem_classes="field" if is_text else "field number",
        **options,
    )
