"""The array type of frames and latents on the host."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float32]
"""Frames in [0, 1], latents or traced activations on the host, always in float32."""
