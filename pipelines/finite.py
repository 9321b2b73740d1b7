"""Checks that computed values are finite, with the likely cause in the error."""

from __future__ import annotations

import torch

from longtake.errors import EngineError

_VAE_CAUSES = "the VAE's weights are damaged, or float16 overflowed; try vae_dtype float32"


def check_latents(latents: torch.Tensor) -> torch.Tensor:
    """Raise if denoised latents are infinite or NaN, which would decode to black frames."""
    return _finite(
        latents,
        "the latents are not finite after denoising: the weights do not fit the architecture, or "
        "float16 overflowed; try dtype bfloat16 or float32",
    )


def check_picture(latents: torch.Tensor) -> torch.Tensor:
    """Raise if an encoded picture is infinite or NaN, before denoising."""
    return _finite(latents, f"the picture's latents are not finite: {_VAE_CAUSES}")


def check_frames(values: torch.Tensor) -> torch.Tensor:
    """Raise if decoded frames are infinite or NaN, before they are clamped to [0, 1]."""
    return _finite(values, f"the decoded frames are not finite: {_VAE_CAUSES}")


def _finite(values: torch.Tensor, message: str) -> torch.Tensor:
    if not bool(torch.isfinite(values).all()):
        raise EngineError(message)
    return values
