"""Settings of released few-step LoRAs and models of Wan.

Models of DMD that add new noise between steps (CausVid, FastWan) have none: no sampler here does.
"""

from __future__ import annotations

from collections.abc import Mapping

from longtake.configs.fields.few_step import FewStep

_LIGHTX2V = FewStep(
    num_inference_steps=4,
    flow_shift=5.0,
    guidance_scale=1.0,
    sampler="euler",
    sigma_spacing="linear",
)
"""LightX2V's configs/distill/wan21/wan_t2v_distill_lora_4step_cfg.json and those beside it, for Wan
2.1 and 2.2 of 14B: timesteps 1000, 750, 500 and 250 before the shift, Euler, no guidance. Its
boundary_step_index of 2 is where the boundaries of Wan 2.2, 0.875 and 0.9, change experts."""

_ACCVIDEO = FewStep(
    num_inference_steps=10,
    flow_shift=5.0,
    guidance_scale=1.0,
    sampler="unipc",
    sigma_spacing="linear",
)
"""AccVideo's README and sample_wanx_t2v.py, for Wan 2.1 text to video of 14B: Wan's own UniPC,
which spaces its levels evenly before the shift, in 10 steps without guidance."""


_HEADS = 40
"""Attention heads of the models of 14B, which these are made for."""


def few_step_presets(
    num_heads: int, *, takes_picture: bool, has_experts: bool
) -> Mapping[str, FewStep]:
    """The presets of a kind of model.

    Args:
        num_heads: Attention heads of the transformer.
        takes_picture: Whether the pipeline is that of image to video.
        has_experts: Whether there are two transformers, as in Wan 2.2.
    """
    if num_heads != _HEADS:
        return {}
    lightx2v = {"lightx2v-4step": _LIGHTX2V}
    if takes_picture or has_experts:
        return lightx2v
    return {**lightx2v, "accvideo-10step": _ACCVIDEO}
