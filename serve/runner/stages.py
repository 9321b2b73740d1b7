"""Stages whose time is not one video's own."""

from __future__ import annotations

UNCOUNTED_STAGES = ("loading", "snapshots")
"""Loading serves all videos of an engine; writing snapshots is a part of denoising."""
