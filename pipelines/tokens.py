"""What the transformers of several families do with a rank's tokens.

Legend: B videos, C channels, s local tokens, P values per token, N heads, H head size.
"""

from __future__ import annotations

import torch


def rotate_(x: torch.Tensor, rotation: torch.Tensor) -> torch.Tensor:
    """Rotate each pair of adjacent values of ``[B, s, N, H]`` by ``rotation``, in float32.

    Modifies ``x`` in place if it is already float32.

    Args:
        rotation: ``[s, H / 2]``, complex64.
    """
    pairs = torch.view_as_complex(x.float().unflatten(-1, (-1, 2)))
    pairs.mul_(rotation[:, None])
    return torch.view_as_real(pairs).flatten(-2).to(x.dtype)


def row_of_patches(tokens: torch.Tensor, patch: tuple[int, int, int]) -> torch.Tensor:
    """Lay tokens out side by side, for a patch embedding by convolution.

    Args:
        tokens: ``[B, s, P]``.
        patch: Latent frames, rows and columns per token.

    Returns:
        ``[B, C, frames, rows, s x columns]``.
    """
    patches: torch.Tensor = tokens.unflatten(-1, (-1, *patch))
    return patches.permute(0, 2, 3, 4, 1, 5).flatten(-2)
