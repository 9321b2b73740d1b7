"""The page: a form, the video that comes of it, and those before; on the API's own queue."""

from __future__ import annotations

import logging
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import gradio as gr
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, Response

from longtake.configs.request import MAX_SEED
from longtake.engine.job_database import QueueError
from longtake.engine.job_records import JobRecord
from longtake.errors import EngineError, RefusedInputError, RequestError
from longtake.serve.api import told_of
from longtake.serve.asked import refused
from longtake.serve.form import FIELDS, Form
from longtake.serve.page_calls import PageCalls
from longtake.serve.problems import Problem
from longtake.serve.service import VideoService
from longtake.serve.views import Views

logger = logging.getLogger(__name__)

_TEMPLATES = Path(__file__).parent / "templates"
_TICK_S = 1.0
_MORE = 24
_PICTURE = """
<div class="lt picture"><label for="picture-file">Picture to animate (PNG, JPEG or WebP)</label>
<input id="picture-file" type="file" accept="image/png,image/jpeg,image/webp"
 onchange="longtake.chosen()"><img id="picture-shown" alt="the picture" hidden></div>
"""
_SEND_PICTURE = """
async (picture, ...rest) => [await longtake.picture() || picture, ...rest]
"""
_MOST_SHOWN = 480


def page_of(service: VideoService) -> FastAPI:
    """The page as an application."""
    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)

    @app.post("/picture", response_model=None)
    async def picture(request: Request) -> Response:
        """Keep a picture for which the page will ask for a video; Gradio never sees it."""
        try:
            send = partial(service.pictures.send, await request.body())
            name = await service.pictures.turns.take(request, send)
        except Problem as problem:
            return problem.answer()
        except RefusedInputError as error:
            return Problem(400, str(error), param="input_reference").answer()
        except EngineError as error:
            return Problem(503, told_of(error)).answer()
        return JSONResponse({"picture": name})

    blocks = Page(service).blocks()
    functions = blocks.config["dependencies"]
    app.add_middleware(PageCalls, inputs={each["id"]: len(each["inputs"]) for each in functions})
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
        theme=gr.themes.Default(
            primary_hue="blue",
            font=["system-ui", "sans-serif"],
            font_mono=["ui-monospace", "monospace"],
        ),
        css=(_TEMPLATES / "page.css").read_text(),
        head=f"<script>{(_TEMPLATES / 'page.js').read_text()}</script>",
    )
    return app


class Page:
    """What the page does; it knows its videos by their ids alone, so a reload loses nothing.

    Args:
        service: whose queue it uses.
    """

    def __init__(self, service: VideoService) -> None:
        self._service = service
        self._views = Views(service)
        self._form = Form(service.engine)

    def blocks(self) -> Any:
        """The page's elements, and what they do."""
        with gr.Blocks(title="longtake", analytics_enabled=False, fill_width=True) as blocks:
            gr.HTML(f"<h1>longtake</h1><p>{self._service.model}</p>", elem_id="title")
            video = gr.Textbox(visible=False)
            picture = gr.Textbox(visible=False)
            told, count = gr.Textbox("", visible=False), gr.Textbox(str(_MORE), visible=False)
            with gr.Row():
                with gr.Column(scale=5, min_width=320):
                    fields, estimate, generate, cancel, dice = self._inputs()
                with gr.Column(scale=6, min_width=320):
                    status = gr.HTML(self._views.status(None))
                    again = gr.Button("Use these settings", visible=False, size="sm")
            gr.HTML("<h2>Videos</h2>", padding=False)
            gallery = gr.HTML()
            more = gr.Button("Show more", size="sm", visible=False)
            with gr.Accordion("Engine", open=False):
                engine = gr.HTML()
            shown = [status, gallery, engine, cancel, again, more, told]
            form = list(fields.values())
            # At once: what waits in Gradio's queue stays there until it is fetched.
            ask: dict[str, Any] = {"show_progress": "hidden", "queue": False}
            load = blocks.load(
                self._opened,
                [video, picture],
                [video, picture, *form],
                js="() => [longtake.asked(), longtake.draft()]",
                **ask,
            )
            see: list[Any] = [self._seen, [video, told, count], shown]
            load.then(*see, **ask).then(self._estimate, form, estimate, **ask)
            gr.Timer(_TICK_S).tick(*see, **ask)
            generate.click(
                self._submitted,
                [picture, video, *form],
                [video, status, told],
                js=_SEND_PICTURE,
                **ask,
            ).then(None, [video], js="(video) => longtake.shows(video)").then(*see, **ask)
            cancel.click(self._cancelled, [video], None, **ask).then(*see, **ask)
            again.click(
                self._settings_of,
                [video],
                [picture, *form],
                js="(video) => { longtake.clear(); return [video]; }",
                **ask,
            )
            more.click(self._more, [count], [count], **ask).then(*see, **ask)
            dice.click(self._form.drawn, None, fields["seed"], **ask)
            for name in ("size", "length", "num_inference_steps"):
                fields[name].change(self._estimate, form, estimate, **ask)
        return blocks

    def _inputs(self) -> tuple[dict[str, Any], Any, Any, Any, Any]:
        """The form; the fields by name, and what stands below them."""
        defaults = self._service.engine.spec.defaults
        fields: dict[str, Any] = {}
        fields["prompt"] = gr.Textbox(
            label="Prompt",
            lines=3,
            max_lines=8,
            placeholder="What to show",
            autofocus=True,
            elem_id="prompt",
        )
        if self._service.engine.spec.image is not None:
            gr.HTML(_PICTURE)
        with gr.Row():
            sizes, lengths = self._form.sizes(), self._form.lengths()
            custom: dict[str, Any] = {"allow_custom_value": True, "min_width": 200}
            fields["size"] = gr.Dropdown(sizes, value=sizes[0][1], label="Size", **custom)
            fields["length"] = gr.Dropdown(
                lengths, value=self._form.default_length, label="Length", **custom
            )
        with gr.Row(elem_id="seed"):
            fields["seed"] = gr.Textbox(
                label="Seed", placeholder="drawn", max_length=len(str(MAX_SEED)), min_width=140
            )
            dice = gr.Button("⚄ Draw", size="sm", min_width=90, scale=0)
        with gr.Accordion("More settings", open=False):
            fields["num_inference_steps"] = gr.Number(
                defaults.num_inference_steps, label="Steps", precision=0
            )
            fields["guidance_scale"] = gr.Number(
                defaults.guidance_scale, label="Guidance", step=0.5
            )
            fields["flow_shift"] = gr.Textbox(
                label="Flow shift", placeholder=f"{self._service.engine.spec.flow_shift:g}"
            )
        estimate = gr.HTML(elem_id="estimate")
        with gr.Row():
            generate = gr.Button("Generate", variant="primary")
            cancel = gr.Button("Cancel", variant="stop", interactive=False)
        return fields, estimate, generate, cancel, dice

    # What the elements do.

    def _opened(self, video: str, draft: str) -> list[Any]:
        """The form as it was for the video that the address names; else with the prompt that was
        being written when the page was left."""
        job = self._found(video)
        if job is None:  # whoever is quick has begun to fill it in
            prompt = draft if draft else gr.skip()
            return [video, "", prompt, *[gr.skip()] * (len(FIELDS) - 1)]
        return [job.id, *self._settings_of(video)]

    @staticmethod
    def _more(count: Any) -> str:
        return str(min(_MOST_SHOWN, _counted(count) + _MORE))

    def _settings_of(self, video: str) -> list[Any]:
        """The video that the picture is of, and the fields; nothing of one that is gone."""
        job = self._found(video)
        if job is None:
            return [gr.skip()] * (1 + len(FIELDS))
        of_picture = job.id if job.request.image is not None else ""
        return [of_picture, *self._form.values(job.request)]

    def _seen(self, video: str, told: str, count: str) -> list[Any]:
        """All that changes by itself; nothing where nothing did."""
        try:
            job = self._service.store.found(str(video)) if video else None
            jobs, more = self._service.store.page(None, _counted(count), newest_first=True)
            views = [
                self._views.status(job, gone=bool(video) and job is None),
                self._views.gallery(jobs, video),
                self._views.engine(),
            ]
        except EngineError as error:
            return [self._views.status(None, told_of(error)), *[gr.skip()] * 6]
        active, done = job is not None and not job.ended, job is not None and job.ended
        now = repr((views, active, done, more))
        if now == told:
            return [gr.skip()] * 7
        return [
            *views,
            gr.update(interactive=active),
            gr.update(visible=done),
            gr.update(visible=more),
            now,
        ]

    def _submitted(self, picture: str, before: str, request: gr.Request, *form: Any) -> list[Any]:
        """Queue a video; what is amiss is said where the video would be."""
        values: dict[str, Any] = {}
        try:
            values = self._form.request(form)
            upload, picture = None, str(picture or "")
            if picture.startswith("!"):  # what the page was answered when it sent it
                raise RequestError(picture[1:])
            if picture:
                upload = self._service.picture_of(picture)
            sent = request.request
            asker = (sent.scope.get("asker") if sent else "") or ""
            job = self._service.create(values, upload, asker=asker)
        except RefusedInputError as error:
            return [before, self._views.status(None, str(refused(error, values))), gr.skip()]
        except EngineError as error:
            logger.warning("%s", error)
            return [before, self._views.status(None, told_of(error)), gr.skip()]
        return [job.id, gr.skip(), ""]

    def _cancelled(self, video: str) -> None:
        job = self._found(video)
        if job is not None and not job.ended:
            with suppress(QueueError):  # which is shown meanwhile
                self._service.cancel(job)

    def _estimate(self, *form: Any) -> str:
        """How long what the form says will take, once it is begun."""
        return self._views.estimate(self._form, form)

    def _found(self, video: str) -> JobRecord | None:
        """A video; None if there is none, or if the queue cannot be read, which is shown."""
        with suppress(QueueError):
            return self._service.store.found(str(video)) if video else None
        return None


def _counted(count: Any) -> int:
    """How many videos a page shows, whatever it says."""
    text = str(count)
    return int(text) if text.isdecimal() and len(text) < 4 else _MORE
