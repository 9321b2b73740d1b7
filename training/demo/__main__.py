"""Train the demo model from scratch: ``python -m training.demo FOLDER --output MODEL_FOLDER``."""

from __future__ import annotations

import json
import logging
from dataclasses import asdict
from pathlib import Path

import diffusers
import torch
import transformers
import tyro

from training.demo import autoencoder, denoiser, latents, model

logger = logging.getLogger(__name__)


def main(folder: Path, /, output: Path, guidance_scale: float = 4.0) -> None:
    """Train all stages, each from its last checkpoint, and save the model.

    Args:
        folder: of checkpoints and logs.
        output: folder that the model is saved to.
        guidance_scale: that the model's defaults name.
    """
    folder.mkdir(parents=True, exist_ok=True)
    vae = autoencoder.train_autoencoder(folder)
    psnr_db = autoencoder.psnr_db(vae, autoencoder.unseen(16))
    logger.info("the autoencoder's round trip of unseen clips: %.1f dB", psnr_db)
    encoded = latents.Latents(vae, folder)
    logger.info("%d clips are encoded", latents.CLIPS)
    trained = denoiser.train_denoiser(encoded, folder)
    parts = (vae, trained.transformer, trained.llama, trained.clip)
    model.save(output, *parts, guidance_scale=guidance_scale)
    stages = [asdict(stage) for stage in autoencoder.STAGES]
    stages += [
        {"name": name, "schedule": asdict(schedule), "videos": denoiser.BATCH}
        for name, schedule in {**denoiser.FLOW, **denoiser.GUIDANCE}.items()
    ]
    stages = [{**each, "last": _last_line(folder / f"{each['name']}.jsonl")} for each in stages]
    figures = {
        "seeds": "0 for the first weights; for a step's chance, its number",
        "versions": {each.__name__: each.__version__ for each in (torch, diffusers, transformers)},
        "stages": stages,
        "clips": latents.CLIPS,
        "wordless": denoiser.WORDLESS,
        "flow_shift": model.FLOW_SHIFT,
        "guidance_scales": denoiser.GUIDANCE_SCALES,
        "autoencoder_psnr_db": round(psnr_db, 2),
    }
    (output / "training.json").write_text(json.dumps(figures, indent=2) + "\n")


def _last_line(log: Path) -> dict[str, float]:
    figures: dict[str, float] = json.loads(log.read_text().splitlines()[-1])
    return figures


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    tyro.cli(main)
