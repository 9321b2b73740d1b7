"""The layouts in which files of Wan's components come, as data and without torch."""

from __future__ import annotations

from longtake.pipelines.models.wan.layouts import clip_vision, transformer, umt5, vae

LAYOUTS = (*transformer.LAYOUTS, *vae.LAYOUTS, *umt5.LAYOUTS, *clip_vision.LAYOUTS)
