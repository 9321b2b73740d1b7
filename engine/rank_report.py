"""What one rank measured in one job."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass
class RankReport:
    """What one rank measured in one job.

    Attributes:
        rank: The rank.
        device: The rank's device, as torch names it.
        attention_kernel: Name of the attention kernel; empty if nothing was denoised.
        seconds: Duration by stage.
        bytes_sent: Bytes sent to other ranks, by stage.
        tiles_at_once: Largest number of tiles decoded at once.
        peak_memory_bytes: Peak memory of the GPU, or of the process, since the rank started.
        steps_before: Number of steps in the snapshot that the job resumed from.
        snapshots: Number of snapshots written.
        snapshot_failure: Why a snapshot could not be written; empty if all were.
        swapped_bytes: Bytes that the rank's host moved between memory and its swap meanwhile.
        loras: The LoRAs that were fused: file, digest, scale, number of changed tensors by
            component, and names of tensors that were left out; on rank 0.
        truncated: Prompts that were cut, by field, with token counts "used" and "total"; on rank 0.
    """

    rank: int
    device: str
    attention_kernel: str
    seconds: dict[str, float]
    bytes_sent: dict[str, int]
    tiles_at_once: int
    peak_memory_bytes: int
    steps_before: int = 0
    snapshots: int = 0
    snapshot_failure: str = ""
    swapped_bytes: int = 0
    loras: list[dict[str, Any]] = field(default_factory=list)
    truncated: dict[str, dict[str, int]] = field(default_factory=dict)
