"""LoRAs that come with the package."""

from __future__ import annotations

from pathlib import Path


def bundled_loras() -> dict[str, Path]:
    """Files of the bundled LoRAs, by name."""
    return {file.stem: file for file in sorted(Path(__file__).parent.glob("*.safetensors"))}
