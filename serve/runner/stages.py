"""Stages that do not count towards the time of one video."""

from __future__ import annotations

from longtake.engine.loras.choice import LORAS_STAGE

UNCOUNTED_STAGES = ("loading", "snapshots", LORAS_STAGE)
"""Loading serves all videos of an engine, and an exchange of LoRAs several. Writing snapshots is
part of denoising."""
