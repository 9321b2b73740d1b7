"""The page: a form, one video, and a gallery of the videos in the server's queue."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import gradio as gr
from fastapi import FastAPI

from longtake.serve.http.problems import add_error_handlers
from longtake.serve.http.video_object import VideoObjects
from longtake.serve.page.elements import Inputs, Result, add_inputs, add_result, html
from longtake.serve.page.form import Form
from longtake.serve.page.gradio_internals import num_arguments
from longtake.serve.page.handlers import VIDEOS_PER_PAGE, Handlers
from longtake.serve.page.page_calls import PageCalls
from longtake.serve.page.theme import theme
from longtake.serve.page.views import Views
from longtake.serve.service.service import VideoService
from longtake.serve.templates import source_of

_REFRESH_S = 1.0
_UPLOAD_PICTURES = """
async (video, ...rest) => {
  const count = longtake.pictures().length;
  return [video, ...await longtake.uploads(rest.slice(0, count)), ...rest.slice(count)];
}
"""
_SUBMITTED = "(video, problem) => longtake.submitted(video, problem)"
_SHOW_PROBLEM = "(problem) => longtake.problem(problem)"
_FILL = "(...values) => { longtake.clearAll(); longtake.saveDraft(''); return values; }"
_CALL: dict[str, Any] = {"show_progress": "hidden", "queue": False}
"""Options of all calls. Gradio's queue is not used: it keeps results until they are fetched."""


def build_page(service: VideoService, objects: VideoObjects) -> FastAPI:
    """The page as an application.

    Args:
        service: The service.
        objects: Converts jobs to video objects.
    """
    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)
    add_error_handlers(app)
    blocks = _build_blocks(service, Views(service, objects))
    app.add_middleware(PageCalls, num_arguments=num_arguments(blocks))
    gr.mount_gradio_app(
        app,
        blocks,
        "/",
        footer_links=[],
        run_history=False,
        ssr_mode=False,
        enable_monitoring=False,
        mcp_server=False,
        show_error=False,
        max_file_size="1kb",
        app_kwargs={"docs_url": None, "redoc_url": None, "openapi_url": None},
        theme=theme(),
        css=source_of("page.css"),
        head=f"<script>{source_of('page.js')}</script>",
    )
    return app


@dataclass(frozen=True)
class _Elements:
    """All elements that calls read or change.

    Attributes:
        video: Hidden; id of the current video.
        pictures: Hidden; name of each picture to use, in the order of the model's.
        shown: Hidden; checksums of the parts on the page.
        problem: Hidden; an error of one field, as JSON.
        count: Hidden; number of videos in the gallery.
        inputs: The form.
        result: The current video.
        gallery: The gallery.
        more: Button that extends the gallery.
        engine: State of the ranks.
    """

    video: Any
    pictures: list[Any]
    shown: Any
    problem: Any
    count: Any
    inputs: Inputs
    result: Result
    gallery: Any
    more: Any
    engine: Any


def _build_blocks(service: VideoService, views: Views) -> Any:
    form = Form(service.engine.spec, takes_loras=service.loras is not None)
    handlers = Handlers(service, form, views)
    with gr.Blocks(title="longtake", analytics_enabled=False, fill_width=True) as blocks:
        elements = _add_elements(service, form, views)
        _connect(blocks, elements, handlers, form)
    return blocks


def _add_elements(service: VideoService, form: Form, views: Views) -> _Elements:
    html(views.header())
    video = gr.Textbox(visible="hidden", show_label=False, elem_id="video")
    shown, problem = (gr.Textbox(visible=False) for _ in range(2))
    pictures = [gr.Textbox(visible=False) for _ in service.engine.spec.pictures]
    count = gr.Textbox(str(VIDEOS_PER_PAGE), visible=False)
    with gr.Row(elem_id="columns"):
        with gr.Column(scale=5, min_width=320, elem_id="form"):
            inputs = add_inputs(service.engine.spec, form, views.examples())
        with gr.Column(scale=6, min_width=320, elem_id="result"):
            result = add_result(views.status(None))
    html("<h2>Videos</h2>")
    gallery = html()
    more = gr.Button("Show more", size="sm", visible=False)
    with gr.Accordion("Engine", open=False, elem_id="engine"):
        engine = html()
    return _Elements(video, pictures, shown, problem, count, inputs, result, gallery, more, engine)


def _connect(blocks: Any, elements: _Elements, handlers: Handlers, form: Form) -> None:
    """Connect the elements to the handlers."""
    video, pictures, problem = elements.video, elements.pictures, elements.problem
    inputs, result = elements.inputs, elements.result
    fields = list(inputs.fields.values())
    parts = [result.status, result.details, elements.gallery, elements.engine]
    refreshed = [*parts, *result.actions, elements.more, elements.shown]
    refresh: list[Any] = [handlers.refresh, [video, elements.shown, elements.count], refreshed]
    estimate: list[Any] = [handlers.estimate, fields, [inputs.estimate, problem]]
    filled, queued = [*pictures, *fields], [video, inputs.estimate, problem]

    blocks.load(
        handlers.open,
        [video, elements.shown],
        [video, *filled],
        js="() => [longtake.current(), longtake.draft()]",
        **_CALL,
    ).then(*refresh, **_CALL).then(*estimate, **_CALL).then(js="() => longtake.ready()")
    if form.loras:
        choosers = [inputs.fields[name] for name in form.loras[::2]]
        blocks.load(handlers.lora_choices, None, choosers, **_CALL)
    gr.Timer(_REFRESH_S).tick(*refresh, **_CALL)
    video.input(*refresh, **_CALL)
    inputs.generate.click(
        handlers.submit, [video, *filled], queued, js=_UPLOAD_PICTURES, **_CALL
    ).then(None, [video, problem], js=_SUBMITTED).then(*refresh, **_CALL)
    result.cancel.click(handlers.cancel, [video], None, **_CALL).then(*refresh, **_CALL)
    result.retry.click(handlers.retry, [video], queued, **_CALL).then(
        None, [video, problem], js=_SUBMITTED
    ).then(*refresh, **_CALL)
    result.reuse.click(handlers.settings, [video], filled, js=_FILL, **_CALL).then(
        *estimate, **_CALL
    ).then(None, [problem], js=_SHOW_PROBLEM)
    result.delete.click(None, [video], js="(video) => longtake.remove(video)")
    for at, picture in enumerate(pictures):
        picture.change(None, [picture], js=f"(picture) => longtake.showKept({at}, picture)")
    elements.more.click(handlers.show_more, [elements.count], [elements.count], **_CALL).then(
        *refresh, **_CALL
    )
    inputs.draw.click(form.random_seed, None, inputs.fields["seed"], **_CALL)
    changed = [inputs.fields["size"].change, inputs.fields["length"].change]
    changed += [inputs.fields[name].change for name in form.loras[::2]]
    changed += [inputs.fields[name].blur for name in ("seed", *form.loras[1::2], *form.settings)]
    gr.on(changed, *estimate, trigger_mode="always_last", **_CALL).then(
        None, [problem], js=_SHOW_PROBLEM
    )
