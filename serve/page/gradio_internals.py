"""Routes and call format of Gradio that it does not document. No other module uses them."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import gradio as gr

CALL_PATH = "/gradio_api/run/predict"
"""Calls a function and answers at once. It takes ``fn_index``, a function's number, and ``data``,
its arguments. It opens an object among them as the name of a file, or a URL."""

PAGE_PATHS = {
    "GET": re.compile(
        r"/|/config/?|/theme\.css|/favicon\.ico|/manifest\.json|/robots\.txt"
        r"|/(static|assets|svelte)/[\w./@+-]+|/gradio_api/app_id"
    ),
    "POST": re.compile(re.escape(CALL_PATH)),
}
"""All paths that a page's script needs. Gradio's files, uploads, proxy and queue are not among
them."""


def num_arguments(blocks: gr.Blocks) -> dict[int, int]:
    """The number of arguments of each function that runs on the server, by its number."""
    functions = [each for each in blocks.config["dependencies"] if each["backend_fn"]]
    return {each["id"]: len(each["inputs"]) for each in functions}


def encode_call(function: int, arguments: Sequence[Any]) -> dict[str, Any]:
    """The body of a call that names no session, of which Gradio keeps nothing."""
    return {"fn_index": function, "data": list(arguments)}
