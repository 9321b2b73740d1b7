"""Gradio's undocumented routes and call format. No other module depends on them."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import gradio as gr

CALL_PATH = "/gradio_api/run/predict"
"""Route that calls a function and returns its result. The body holds ``fn_index``, the number of
the function, and ``data``, its arguments. Gradio opens objects among them as files or URLs."""

PAGE_PATHS = {
    "GET": re.compile(
        r"/|/config/?|/theme\.css|/favicon\.ico|/manifest\.json|/robots\.txt"
        r"|/(static|assets|svelte)(/(?!\.\.)[\w.@+-]+)+|/gradio_api/app_id"
    ),
    "POST": re.compile(re.escape(CALL_PATH)),
}
"""All paths that the page needs, by method. Gradio's files, uploads, proxy and queue are not among
them."""


def num_arguments(blocks: gr.Blocks) -> dict[int, int]:
    """The number of arguments of each function that runs on the server, by function number."""
    functions = [each for each in blocks.config["dependencies"] if each["backend_fn"]]
    return {each["id"]: len(each["inputs"]) for each in functions}


def encode_call(function: int, arguments: Sequence[Any]) -> dict[str, Any]:
    """The body of a call without a session. Gradio keeps nothing of such a call."""
    return {"fn_index": function, "data": list(arguments)}
