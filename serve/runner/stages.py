"""Stages that do not count towards the time of one video."""

from __future__ import annotations

UNCOUNTED_STAGES = ("loading", "snapshots")
"""Loading serves all videos of an engine. Writing snapshots is part of denoising."""
