"""The page: a form, the video that comes of it, and those before; on the API's own queue."""

from __future__ import annotations

import json
import logging
import zlib
from contextlib import suppress
from functools import partial
from typing import Any

import gradio as gr
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, Response

from longtake.configs.request import MAX_SEED
from longtake.errors import EngineError, RefusedInputError
from longtake.serve.http.api import told_of
from longtake.serve.http.openai_request import FieldError, refused, request_of
from longtake.serve.http.problems import Problem
from longtake.serve.page.form import FIELDS, SETTINGS, Form
from longtake.serve.page.page_calls import PageCalls
from longtake.serve.page.views import Views
from longtake.serve.queue.job_database import QueueError
from longtake.serve.queue.job_records import JobRecord
from longtake.serve.service.service import VideoService
from longtake.serve.templates import TEMPLATES, source_of

logger = logging.getLogger(__name__)

_TICK_S = 1.0
_MORE = 24
_MOST_SHOWN = 480
_SEND_PICTURE = """
async (picture, ...rest) => [await longtake.picture() || picture, ...rest]
"""
_SUBMITTED = "(video, problem) => longtake.submitted(video, problem)"
_PROBLEM = "(problem) => longtake.problem(problem)"
_FILL = "(...given) => { longtake.clear(); longtake.written(''); return given; }"
_ASK: dict[str, Any] = {"show_progress": "hidden", "queue": False}
"""Every call is answered at once: what waits in Gradio's queue stays there until it is fetched."""


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
    # Others run in the browser alone.
    functions = [each for each in blocks.config["dependencies"] if each["backend_fn"]]
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
        theme=_theme(),
        css=source_of("page.css"),
        head=f"<script>{source_of('page.js')}</script>",
    )
    return app


def _theme() -> Any:
    """Plain, and with enough contrast: 4.5 at least between each text and what is behind it."""
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


class Page:
    """What the page does. It knows its videos by their ids alone, so a reload loses nothing; and it
    remembers what it shows itself, so the server keeps nothing of it.

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
            _html(self._views.header())
            video = gr.Textbox(visible="hidden", show_label=False, elem_id="video")
            picture, told, problem = (gr.Textbox(visible=False) for _ in range(3))
            count = gr.Textbox(str(_MORE), visible=False)
            with gr.Row(elem_id="columns"):
                with gr.Column(scale=5, min_width=320, elem_id="form"):
                    fields, dice, estimate, generate = self._inputs()
                with gr.Column(scale=6, min_width=320, elem_id="result"):
                    status = _html(self._views.status(None), elem_id="status")
                    cancel, retry, again, delete = actions = self._actions()
                    details = _html(elem_id="details")
            _html("<h2>Videos</h2>")
            gallery = _html()
            more = gr.Button("Show more", size="sm", visible=False)
            with gr.Accordion("Engine", open=False, elem_id="engine"):
                engine = _html()
            form = list(fields.values())
            shown = [status, details, gallery, engine, *actions, more, told]
            see: list[Any] = [self._seen, [video, told, count], shown]
            guess: list[Any] = [self._estimate, form, [estimate, problem]]
            filled = [picture, *form]
            queued = [video, estimate, problem]

            blocks.load(
                self._opened,
                [video, picture],
                [video, *filled],
                js="() => [longtake.asked(), longtake.draft()]",
                **_ASK,
            ).then(*see, **_ASK).then(*guess, **_ASK).then(js="() => longtake.ready()")
            gr.Timer(_TICK_S).tick(*see, **_ASK)
            video.input(*see, **_ASK)
            generate.click(
                self._submitted, [picture, video, *form], queued, js=_SEND_PICTURE, **_ASK
            ).then(None, [video, problem], js=_SUBMITTED).then(*see, **_ASK)
            cancel.click(self._cancelled, [video], None, **_ASK).then(*see, **_ASK)
            retry.click(self._retried, [video], queued, **_ASK).then(
                None, [video, problem], js=_SUBMITTED
            ).then(*see, **_ASK)
            again.click(self._settings_of, [video], filled, js=_FILL, **_ASK).then(
                *guess, **_ASK
            ).then(None, [problem], js=_PROBLEM)
            delete.click(None, [video], js="(video) => longtake.remove(video)")
            picture.change(None, [picture], js="(picture) => longtake.keeps(picture)")
            more.click(self._more, [count], [count], **_ASK).then(*see, **_ASK)
            dice.click(self._form.drawn, None, fields["seed"], **_ASK)
            changed = [fields["size"].change, fields["length"].change, fields["seed"].blur]
            changed += [fields[name].blur for name in SETTINGS]
            gr.on(changed, *guess, trigger_mode="always_last", **_ASK).then(
                None, [problem], js=_PROBLEM
            )
        return blocks

    def _inputs(self) -> tuple[dict[str, Any], Any, Any, Any]:
        """The fields by name; what draws a seed, how long it will take, and what begins it."""
        spec, form = self._service.engine.spec, self._form
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
        if spec.defaults.examples:
            _html(self._views.examples())
        if spec.image is not None:
            _html(TEMPLATES.get_template("picture.html").render())
        with gr.Row():
            sizes, lengths = form.sizes(), form.lengths()
            chosen = {"size": (sizes, sizes[0][1]), "length": (lengths, form.default_length)}
            for name, (choices, value) in chosen.items():
                fields[name] = gr.Dropdown(
                    choices,
                    value=value,
                    label=name.capitalize(),
                    allow_custom_value=True,
                    min_width=180,
                    elem_id=name,
                    elem_classes="field",
                )
        with gr.Row(elem_id="seeds"):
            fields["seed"] = _number("seed", "Seed", "drawn", max_length=len(str(MAX_SEED)))
            dice = gr.Button("⚄ Draw", size="sm", min_width=90, scale=0)
        with gr.Accordion("More settings", open=False, elem_id="more-settings"):
            names = list(SETTINGS)
            for at in range(0, len(names), 2):
                with gr.Row():
                    for name in names[at : at + 2]:
                        fields[name] = _number(name, SETTINGS[name], form.default(name))
        estimate = _html(elem_id="estimate")
        generate = gr.Button("Generate", variant="primary", elem_id="generate")
        return fields, dice, estimate, generate

    @staticmethod
    def _actions() -> list[Any]:
        """What can be done with the video that is shown."""
        with gr.Row(elem_id="actions"):
            return [
                gr.Button(words, size="sm", min_width=90, visible=False)
                for words in ("Cancel", "Retry", "Use these settings", "Delete")
            ]

    # What the elements do.

    def _opened(self, video: str, draft: str) -> list[Any]:
        """The form as it was for the video that the address names, but with the prompt that was
        being written when the page was left."""
        job = self._found(video)
        if job is None:  # whoever is quick has begun to fill it in
            return [video, "", draft or gr.skip(), *[gr.skip()] * (len(FIELDS) - 1)]
        picture, prompt, *settings = self._settings_of(video)
        return [job.id, picture, draft or prompt, *settings]

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
            shown = [
                self._views.status(job, gone=bool(video) and job is None),
                self._views.details(job),
                self._views.gallery(jobs, video),
                self._views.engine(),
            ]
        except EngineError as error:
            return [self._views.status(None, told_of(error)), *[gr.skip()] * 9]
        active, ended = job is not None and not job.ended, job is not None and job.ended
        again = job is not None and job.state in ("failed", "cancelled")
        buttons = (active, again, ended, job is not None, more)
        now = [f"{zlib.crc32(part.encode()):x}" for part in (*shown, repr(buttons))]
        before = [*str(told).split(","), *[""] * len(now)]
        same = [new == old for new, old in zip(now, before, strict=False)]
        return [
            *(gr.skip() if known else part for part, known in zip(shown, same, strict=False)),
            *(gr.skip() if same[-1] else gr.update(visible=each) for each in buttons),
            ",".join(now),
        ]

    def _submitted(self, picture: str, before: str, request: gr.Request, *form: Any) -> list[Any]:
        """Queue a video; what is amiss is said at the field that it is of."""
        values: dict[str, Any] = {}
        try:
            values = self._form.request(form)
            upload, picture = None, str(picture or "")
            if picture.startswith("!"):  # what the page was answered when it sent it
                raise FieldError(picture[1:], "input_reference")
            if picture:
                upload = self._service.picture_of(picture)
            return self._queued(values, upload, request)
        except RefusedInputError as error:
            return [before, *self._refused(error, values)]
        except EngineError as error:
            logger.warning("%s", error)
            return [before, self._views.problem(told_of(error)), ""]

    def _retried(self, video: str, request: gr.Request) -> list[Any]:
        """Queue a video with all settings of one that ended without."""
        job = self._found(video)
        if job is None or job.state not in ("failed", "cancelled"):
            return [gr.skip()] * 3
        try:
            upload = None if job.request.image is None else self._service.picture_of(job.id)
            return self._queued(request_of(job), upload, request)
        except RefusedInputError as error:
            return [video, self._views.problem(str(error)), ""]
        except EngineError as error:
            logger.warning("%s", error)
            return [video, self._views.problem(told_of(error)), ""]

    def _queued(
        self, values: dict[str, Any], upload: bytes | None, request: gr.Request
    ) -> list[Any]:
        sent = request.request
        asker = (sent.scope.get("asker") if sent else "") or ""
        job = self._service.create(values, upload, asker=asker)
        return [job.id, gr.skip(), ""]

    def _refused(self, error: RefusedInputError, values: dict[str, Any]) -> list[Any]:
        """The estimate, or what is amiss; and the field that it is of."""
        found = refused(error, values)
        field = self._form.field_of(found.param)
        if not field:
            return [self._views.problem(str(found)), ""]
        message = str(found).removeprefix(f"{field}=")  # it stands below that field
        return [gr.skip(), json.dumps({"field": field, "message": message})]

    def _cancelled(self, video: str) -> None:
        job = self._found(video)
        if job is not None and not job.ended:
            with suppress(QueueError):  # which is shown meanwhile
                self._service.cancel(job)

    def _estimate(self, *form: Any) -> list[Any]:
        """How long what the form says will take, once it is begun; or what is amiss with it."""
        values = self._form.request(form)
        try:
            return [self._views.estimate(values), ""]
        except RefusedInputError as error:
            return self._refused(error, values)

    def _found(self, video: str) -> JobRecord | None:
        """A video; None if there is none, or if the queue cannot be read, which is shown."""
        with suppress(QueueError):
            return self._service.store.found(str(video)) if video else None
        return None


def _html(content: str = "", **more: Any) -> Any:
    """What a template says, in the page's own style."""
    return gr.HTML(content, padding=False, apply_default_css=False, **more)


def _number(name: str, label: str, placeholder: str, **more: Any) -> Any:
    """A field for a number, or for words; what is no number is refused where all requests are."""
    words = name == "negative_prompt"
    return gr.Textbox(
        label=label,
        placeholder=placeholder,
        min_width=320 if words else 140,
        lines=2 if words else 1,
        max_lines=8 if words else 1,
        elem_id=name,
        elem_classes="field" if words else "field number",
        **more,
    )


def _counted(count: Any) -> int:
    """How many videos a page shows, whatever it says."""
    text = str(count)
    return int(text) if text.isdecimal() and len(text) < 4 else _MORE
