"""Renders a request to latents, on all ranks together."""

from __future__ import annotations

import torch

from longtake.errors import RefusedInputError, RequestError
from longtake.pipelines.codec.picture import picture_to_video, resize_picture
from longtake.pipelines.family import Streams
from longtake.pipelines.finite import check_picture
from longtake.pipelines.layout import VideoLayout
from longtake.pipelines.runtime.denoising import DenoisingLoop
from longtake.pipelines.runtime.progress import Progress
from longtake.pipelines.runtime.render_run import RenderRun
from longtake.pipelines.runtime.stages import stage


@torch.no_grad()
def render_latents(run: RenderRun) -> torch.Tensor:
    """Encode the prompt and the pictures, denoise over all ranks, gather once.

    Called by all ranks together.

    Returns:
        Latents ``[B, C, F, H, W]``, float32, on every rank. They are finite, except in a traced
        run.

    Raises:
        RequestError: The prompt cannot be encoded, or the layout does not fit the request.
        Stopped: ``stop_requested`` returned true on a rank.
        PeerLostError: Another rank died or was silent for too long.
    """
    _check_layout(run)
    pipeline, request = run.pipeline, run.request
    saved = _broadcast_state(run)
    if run.steps_done == request.num_inference_steps:
        run.on_progress(Progress("denoising", run.steps_done, run.steps_done))
        return saved["latents"]
    layout = VideoLayout.of(pipeline.spec.grid(request), run.dims, run.world.mesh(run.dims))
    streams, pictures = _encode_prompts(run), _encode_pictures(run)
    passes = [pipeline.denoiser.prepare(each, layout, request, pictures) for each in streams]
    guidance, stepper = pipeline.guidance(passes, request), pipeline.stepper(request)
    loop = DenoisingLoop(run, layout, guidance, stepper)
    if run.steps_done:
        latents = loop.resume(saved)
    else:
        latents = pipeline.initial_latents(layout.grid, request, pictures)
    latents = pipeline.finish_latents(loop.denoise(latents), pictures)
    loop.save_finished(latents)
    return latents


def _check_layout(run: RenderRun) -> None:
    """Refuse a ``cfg_degree`` that does not divide the passes of a step."""
    passes, degree = run.pipeline.spec.num_passes(run.request), run.dims.cfg_degree
    if passes % degree:
        raise RequestError(
            f"cfg_degree={degree} with {passes} {'passes' if passes > 1 else 'pass'} a step: "
            "classifier-free guidance has a second one, its scale must be above 1; leave "
            "cfg_degree at 1"
        )


def _broadcast_state(run: RenderRun) -> dict[str, torch.Tensor]:
    """The tensors of the state to resume from, on all ranks; empty if the run starts at step 0."""
    if not run.steps_done:
        return {}
    return run.world.broadcast_tensors(None if run.state is None else run.state.tensors())


def _encode_prompts(run: RenderRun) -> list[Streams]:
    """The conditioning of each pass, on all ranks.

    Rank 0 encodes and broadcasts; its refusal is raised on all ranks.
    """
    run.on_progress(Progress("text", detail="the prompt"))
    passes: list[Streams] = []
    num_passes, refusal = run.pipeline.spec.num_passes(run.request), None
    with stage(run.report, "text"):
        if run.world.rank == 0:
            try:
                passes = run.pipeline.encode(run.request, run.pictures)
            except RefusedInputError as error:
                refusal = str(error)
            if refusal is None and len(passes) != num_passes:
                refusal = f"the model encoded {len(passes)} of {num_passes} passes of a step"
        refusals = run.world.gather_json(refusal)
        if refusals[0] is not None:
            raise RequestError(refusals[0])
        return [
            run.world.broadcast_tensors(passes[number] if passes else None)
            for number in range(num_passes)
        ]


def _encode_pictures(run: RenderRun) -> Streams:
    """The latents of the pictures by name, on all ranks; empty without pictures."""
    pixels = _broadcast_pictures(run)
    if not pixels:
        return {}
    run.on_progress(Progress("text", detail="the picture"))
    with stage(run.report, "image"), run.pipeline.codec.at_work():
        videos = {name: picture_to_video(each) for name, each in pixels.items()}
        encoded = run.pipeline.encode_pictures(videos, run.request, run.world)
        return {name: check_picture(each) for name, each in encoded.items()}


def _broadcast_pictures(run: RenderRun) -> Streams:
    """Rank 0's pictures in the size of the video, ``[H, W, 3]``, on every rank's device."""
    tensors, request = {}, run.request
    if not run.pipeline.spec.pictures:
        return {}
    if run.world.rank == 0:
        for name, picture in run.pictures.items():
            assert request.resize_mode is not None
            pixels = resize_picture(picture, request.height, request.width, request.resize_mode)
            tensors[name] = torch.from_numpy(pixels)
    return run.world.broadcast_tensors(tensors)
