"""Train the demo models: ``python -m training.demo FOLDER text-to-video --output MODEL_FOLDER``."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import diffusers
import torch
import transformers
import tyro
from diffusers import AutoencoderKLHunyuanVideo

from training.demo import animator, autoencoder, denoiser, latents, model
from training.demo import few_step as distil
from training.demo.loop import Schedule

logger = logging.getLogger(__name__)


def text_to_video(folder: Path, /, output: Path, guidance_scale: float = 4.0) -> None:
    """Train `demo` from scratch, resuming each stage from its last checkpoint.

    Args:
        folder: Folder of checkpoints and logs.
        output: Folder to save the model to.
        guidance_scale: Default guidance scale of the saved model.
    """
    folder.mkdir(parents=True, exist_ok=True)
    vae = autoencoder.train_autoencoder(folder)
    psnr_db = autoencoder.psnr_db(vae, autoencoder.held_out_clips(16))
    logger.info("autoencoder round trip of held-out clips: %.1f dB", psnr_db)
    encoded = latents.Latents(vae, folder)
    logger.info("encoded %d clips", latents.CLIPS)
    trained = denoiser.train_denoiser(encoded, folder)
    parts = (vae, trained.transformer, trained.llama, trained.clip)
    model.save(output, *parts, guidance_scale=guidance_scale)
    stages = [asdict(stage) for stage in autoencoder.STAGES]
    stages += _stages({**denoiser.FLOW_STAGES, **denoiser.GUIDANCE_STAGES}, denoiser.BATCH)
    figures = {
        "guidance_scales": denoiser.GUIDANCE_SCALES,
        "autoencoder_psnr_db": round(psnr_db, 2),
    }
    _write_figures(output, folder, stages, figures)


def image_to_video(folder: Path, /, start: Path, output: Path) -> None:
    """Train `demo-i2v`, starting from `demo` and reusing its autoencoder.

    Args:
        folder: Folder of checkpoints and logs.
        start: Folder of the text-to-video model.
        output: Folder to save the model to.
    """
    folder.mkdir(parents=True, exist_ok=True)
    vae = AutoencoderKLHunyuanVideo.from_pretrained(start / "vae").eval().requires_grad_(False)
    encoded = latents.Latents(vae, folder, from_pictures=True)
    logger.info("encoded %d clips", latents.CLIPS)
    trained = animator.train_animator(start, encoded, folder)
    model.save_image_to_video(output, vae, trained.transformer, trained.llava, trained.clip)
    stages = _stages(animator.VISION_STAGES, animator.PICTURES)
    stages += _stages(animator.VIDEO_STAGES, animator.BATCH)
    _write_figures(output, folder, stages, {"start": start.name})


def few_step(folder: Path, /, start: Path, output: Path, steps: int = 6) -> None:
    """Distil a LoRA with which `demo` renders in fewer steps.

    Args:
        folder: Folder of trajectories, checkpoints and logs.
        start: Folder of the text-to-video model.
        output: File to save the LoRA to.
        steps: Steps of the distilled model, a divisor of 24.
    """
    folder.mkdir(parents=True, exist_ok=True)
    tensors = distil.train_few_step(start, folder, steps)
    stages = [
        {**asdict(stage), "name": f"{steps}-step-{stage.name}"}
        for stage in (distil.VELOCITY, distil.PATH)
    ]
    trained = _with_last(folder, stages)
    record = {"start": start.name, "versions": _versions(), "stages": trained}
    distil.save_lora(output, tensors, steps, record)


def _stages(schedules: Mapping[str, Schedule], videos: int) -> list[dict[str, Any]]:
    return [
        {"name": name, "schedule": asdict(schedule), "videos": videos}
        for name, schedule in schedules.items()
    ]


def _write_figures(
    output: Path, folder: Path, stages: list[dict[str, Any]], more: dict[str, Any]
) -> None:
    """Write training.json, the record of the training, to the model's folder."""
    figures = {
        "seeds": "0 for the initial weights; the step index for each step",
        "versions": _versions(),
        "stages": _with_last(folder, stages),
        "clips": latents.CLIPS,
        "wordless": denoiser.WORDLESS,
        "flow_shift": model.FLOW_SHIFT,
        **more,
    }
    (output / "training.json").write_text(json.dumps(figures, indent=2) + "\n")


def _with_last(folder: Path, stages: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The stages, each with the last line of its log."""
    return [{**each, "last": _last_line(folder / f"{each['name']}.jsonl")} for each in stages]


def _versions() -> dict[str, str]:
    return {each.__name__: each.__version__ for each in (torch, diffusers, transformers)}


def _last_line(log: Path) -> dict[str, float]:
    figures: dict[str, float] = json.loads(log.read_text().splitlines()[-1])
    return figures


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    tyro.extras.subcommand_cli_from_dict(
        {
            "text-to-video": text_to_video,
            "image-to-video": image_to_video,
            "few-step": few_step,
        }
    )
