"""Training scenes of the demo models: a flat shape that moves over a flat background.

Legend: B scenes, F frames, H W pixels.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

import torch

Color = tuple[int, int, int]

COLORS: dict[str, Color] = {
    "red": (224, 32, 32),
    "green": (32, 176, 48),
    "blue": (40, 88, 255),
    "yellow": (248, 224, 32),
    "white": (248, 248, 248),
    "purple": (152, 40, 200),
    "orange": (255, 136, 16),
    "cyan": (32, 224, 232),
}
BACKGROUNDS: dict[str, Color] = {
    "black": (8, 8, 8),
    "gray": (124, 124, 124),
    "navy": (12, 16, 92),
    "brown": (104, 64, 28),
}
SHAPES = ("circle", "square", "triangle", "ring")
DIRECTIONS: dict[str, tuple[int, int]] = {
    "left": (-1, 0),
    "right": (1, 0),
    "up": (0, -1),
    "down": (0, 1),
}
"""Unit vectors, right and down, by name."""

RADIUS_PX = (10.0, 13.0)
TRAVEL_PX = (28.0, 36.0)
"""Range of travel over the video. Long travel ties direction to position in each frame."""
ANY_TRAVEL_PX = (12.0, 36.0)
"""Range of travel for image-to-video. Short travel allows the shape to start anywhere."""


@dataclass(frozen=True)
class Scene:
    """The content of a scene, by name."""

    color: str
    shape: str
    direction: str
    background: str

    @classmethod
    def draw(cls, rng: random.Random) -> Scene:
        """Draw a scene uniformly at random."""
        return cls(
            rng.choice(list(COLORS)),
            rng.choice(SHAPES),
            rng.choice(list(DIRECTIONS)),
            rng.choice(list(BACKGROUNDS)),
        )

    @property
    def prompt(self) -> str:
        """The plain prompt of the scene."""
        return (
            f"a {self.color} {self.shape} moving {self.direction} on a {self.background} background"
        )


def render(
    scenes: Sequence[Scene],
    rng: random.Random,
    travel_px: tuple[float, float] = TRAVEL_PX,
    /,
    *,
    frames: int,
    height: int,
    width: int,
) -> torch.Tensor:
    """Render scenes with random size, speed and position of each shape, always within the frame.

    Args:
        scenes: Scenes to render, B in number.
        rng: Random generator.
        travel_px: Shortest and longest travel from the first frame to the last, in pixels.
        frames: Number of frames.
        height: Height in pixels.
        width: Width in pixels.

    Returns:
        ``[B, 3, F, H, W]``, float32 in [0, 1], antialiased.
    """
    radius = torch.tensor([rng.uniform(*RADIUS_PX) for _ in scenes])
    travel = torch.tensor([rng.uniform(*travel_px) for _ in scenes])
    position = torch.tensor([[rng.random(), rng.random()] for _ in scenes])
    direction = torch.tensor([DIRECTIONS[scene.direction] for scene in scenes], dtype=torch.float32)
    size = torch.tensor([width, height], dtype=torch.float32)
    # Midpoint of the path, far enough from the borders for the shape and half of its travel.
    margin = radius[:, None] + 1 + direction.abs() * travel[:, None] / 2
    middle = size / 2 + (position - 0.5) * (size - 2 * margin).clamp(min=0)
    along = torch.linspace(-0.5, 0.5, frames) * travel[:, None]  # [B, F]
    center = middle[:, None] + direction[:, None] * along[..., None]  # [B, F, 2]

    x = torch.arange(width) + 0.5 - center[..., :1]  # [B, F, W]
    y = torch.arange(height) + 0.5 - center[..., 1:]  # [B, F, H]
    coverage = torch.stack(
        [
            _coverage(scene.shape, x[at, :, None, :], y[at, :, :, None], float(radius[at]))
            for at, scene in enumerate(scenes)
        ]
    )[:, None]
    front = _paint([COLORS[scene.color] for scene in scenes])
    back = _paint([BACKGROUNDS[scene.background] for scene in scenes])
    return back + coverage * (front - back)


def _paint(colors: list[Color]) -> torch.Tensor:
    """``[B, 3, 1, 1, 1]`` in [0, 1]."""
    return torch.tensor(colors, dtype=torch.float32)[:, :, None, None, None] / 255


def _coverage(shape: str, x: torch.Tensor, y: torch.Tensor, radius: float) -> torch.Tensor:
    """Fraction of each pixel that a shape covers, from its signed distance."""
    if shape == "circle":
        outside = (x**2 + y**2).sqrt() - radius
    elif shape == "ring":
        outside = ((x**2 + y**2).sqrt() - 0.74 * radius).abs() - 0.26 * radius
    elif shape == "square":
        outside = torch.maximum(x.abs(), y.abs()) - 0.86 * radius
    else:  # a triangle that points up
        outside = torch.maximum(y - 0.72 * radius, 0.866 * x.abs() - 0.5 * y - 0.5 * radius)
    return (0.5 - outside / 1.5).clamp(0, 1)
