"""Settings of released few-step models of HunyuanVideo text to video."""

from __future__ import annotations

from collections.abc import Mapping

from longtake.configs.fields.few_step import FewStep

_HEADS = 24
"""Attention heads of the released models, which these are made for."""

_PRESETS: Mapping[str, FewStep] = {
    # FastVideo's scripts/inference/inference_hunyuan.sh: --num_inference_steps 6 --flow_shift 17
    # --embedded_cfg_scale 6.
    "fasthunyuan-6step": FewStep(num_inference_steps=6, flow_shift=17.0, guidance_scale=6.0),
    # AccVideo's README: --num_inference_steps 5 --flow_shift 7 --embedded_cfg_scale 6; its pipeline
    # takes each tenth of 50 levels, which are spaced evenly before the shift.
    "accvideo-5step": FewStep(num_inference_steps=5, flow_shift=7.0, guidance_scale=6.0),
}


def few_step_presets(num_heads: int) -> Mapping[str, FewStep]:
    """The presets of a text-to-video model.

    Args:
        num_heads: Attention heads of the transformer.
    """
    return _PRESETS if num_heads == _HEADS else {}
