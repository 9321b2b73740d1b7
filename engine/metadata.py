"""Metadata of a rendering: how to repeat it, and what it cost each stage and rank."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from datetime import datetime, timezone
from typing import Any

from longtake.configs.engine import EngineConfig
from longtake.configs.request import ResolvedDecode
from longtake.engine.media.latents import Origin
from longtake.engine.rank_report import RankReport
from longtake.parallel import ParallelDims
from longtake.pipelines.loading.files.model_files import printable
from longtake.version import library_versions

_SWAPPED_BYTES = 2**29
"""Bytes moved between memory and swap during a video, above which users are told."""


@dataclass
class Metadata:
    """How to render a video again, and what it cost.

    Attributes:
        request: The resolved request, with its seed. For decoded latents of unknown origin, only
            the decoding options.
        engine: The engine's configuration, with the dtypes, device, kernel and revision in use.
        layout: The degrees of parallelism.
        seconds: Seconds of each stage on rank 0, including loading and writing.
        ranks: Measurements of each rank.
        num_frames: Number of frames of each video.
        origin: Provenance of latents that were only decoded, if known.
        why: The reason for this layout; empty if nothing was denoised.
        created: UTC time in ISO 8601.
    """

    request: ResolvedDecode
    engine: EngineConfig
    layout: ParallelDims
    seconds: dict[str, float]
    ranks: list[RankReport]
    num_frames: int
    origin: Origin | None = None
    why: str = ""
    created: str = field(
        default_factory=lambda: datetime.now(timezone.utc).isoformat(timespec="seconds")
    )

    @property
    def truncated(self) -> dict[str, dict[str, int]]:
        """Token counts "used" and "total" of each truncated prompt, by request field."""
        return self.ranks[0].truncated

    def warnings(self) -> list[str]:
        """Warnings for the user, a line each."""
        warnings = [
            f"{name} has {count['total']} tokens, of which the first {count['used']} are used: "
            "shorten it, or raise max_sequence_length"
            for name, count in self.truncated.items()
        ]
        warnings += [
            f"lora={each['file']!r}: {len(each['left'])} of its tensors fit nothing in the model, "
            f"such as {printable(each['left'][0])}: the .json names them all"
            for each in self.ranks[0].loras
            if "left" in each
        ]
        swapped = max(rank.swapped_bytes for rank in self.ranks)
        if swapped > _SWAPPED_BYTES:
            warnings.append(
                f"the host moved {swapped / 2**30:.1f} GiB between memory and swap during this "
                "video, which slows it: close other programs, or use --weights disk, which needs "
                "least memory"
            )
        return warnings

    def as_json(self) -> dict[str, Any]:
        """Content of the .json that is written next to a video. ``--config`` takes that file."""
        engine = {
            **self.engine.model_dump(mode="json"),
            "parallel": {**self.engine.parallel.model_dump(mode="json"), **asdict(self.layout)},
        }
        described = {"engine": engine}
        if self.origin is not None:
            decoded = {"vae": self.engine.vae, "vae_dtype": self.engine.vae_dtype}
            rendered = self.origin.engine.model_copy(update=decoded)
            described = {"engine": rendered.model_dump(mode="json"), "decoded_by": engine}
        return {
            "created": self.created,
            "request": self.request.model_dump(mode="json"),
            "num_frames": self.num_frames,
            **described,
            **({"layout": {"taken": self.layout.name, "why": self.why}} if self.why else {}),
            "seconds": {stage: round(taken, 4) for stage, taken in self.seconds.items()},
            **self._snapshots(),
            **({"truncated": self.truncated} if self.truncated else {}),
            **({"loras": loras} if (loras := self.ranks[0].loras) else {}),
            "bytes_sent": {
                stage: sum(rank.bytes_sent.get(stage, 0) for rank in self.ranks)
                for stage in self.ranks[0].bytes_sent
            },
            "peak_memory_bytes": {str(rank.rank): rank.peak_memory_bytes for rank in self.ranks},
            "ranks": [_measured(rank) for rank in self.ranks],
            "versions": library_versions(),
        }

    def _snapshots(self) -> dict[str, Any]:
        """The cost of snapshots, and the steps that resuming saved; empty without snapshots."""
        first, denoising_s = self.ranks[0], self.seconds.get("denoising", 0.0)
        if "snapshots" not in self.seconds:
            return {}
        share = self.seconds["snapshots"] / denoising_s if denoising_s else 0.0
        costs: dict[str, Any] = {"written": first.snapshots, "share_of_denoising": round(share, 5)}
        if first.steps_before:
            costs["steps_before"] = first.steps_before
        if first.snapshot_failure:
            costs["failure"] = first.snapshot_failure
        return {"snapshots": costs}


def _measured(rank: RankReport) -> dict[str, Any]:
    measured = asdict(rank)
    del measured["truncated"], measured["loras"]  # reported once, not for each rank
    return measured
