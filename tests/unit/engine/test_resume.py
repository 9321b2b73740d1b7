"""Files of an interrupted rendering are found, and removed once no longer needed."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from longtake.configs.engine import EngineConfig
from longtake.configs.request import ResolvedRequest
from longtake.configs.snapshot import SnapshotConfig
from longtake.engine.media.identity import Identity
from longtake.engine.media.latents import Origin, latents_bytes
from longtake.engine.media.output_names import placeholder_values
from longtake.engine.media.paths import kept_latents_path, snapshot_path
from longtake.engine.media.snapshot import write_snapshot
from longtake.engine.resume import (
    choose_snapshot,
    find_interrupted,
    find_kept_latents,
    snapshot_kept_on_failure,
)
from longtake.errors import EngineError
from longtake.pipelines.runtime.snapshots import LoopState
from tests.unit.pipelines.runtime.test_snapshots import identity


def write(output: Path, own: Identity, steps_done: int = 2) -> Path:
    """Write a snapshot next to an output."""
    path = snapshot_path(output)
    write_snapshot(path, own, LoopState(steps_done, torch.zeros(1, 2, 1, 2, 2), {}))
    return path


def values(request: ResolvedRequest) -> dict[str, str]:
    return placeholder_values(seed=request.seed, name="a", model="m", num_videos=1)


def test_an_interrupted_rendering_is_found_by_its_template(tmp_path: Path) -> None:
    """With its seed, even if another has been drawn since."""
    own = identity()
    output = tmp_path / f"a-{own.request.seed}.mp4"
    write(output, own)
    template = str(tmp_path / "a-{seed}.mp4")
    other = own.request.model_copy(update={"seed": own.request.seed + 1})
    found = find_interrupted(template, values(other), other, seed_drawn=True)
    assert found == (output, own.request)
    assert find_interrupted(template, values(other), other, seed_drawn=False) is None


def test_kept_latents_are_those_of_the_same_rendering(tmp_path: Path) -> None:
    own, output = identity(), tmp_path / "a.mp4"
    origin = Origin(request=own.request, engine=EngineConfig(), identity=own)
    path = kept_latents_path(output)
    path.write_bytes(latents_bytes(torch.ones(1, 2, 1, 2, 2).numpy(), origin))
    found = find_kept_latents(output, own)
    assert found is not None
    assert (found.path, found.latents.shape) == (path, (1, 2, 1, 2, 2))
    assert find_kept_latents(output, own.model_copy(update={"dtype": "bfloat16"})) is None
    assert find_kept_latents(tmp_path / "b.mp4", own) is None


def test_another_snapshot_is_kept_unless_overwriting(tmp_path: Path) -> None:
    own, output = identity(), tmp_path / "a.mp4"
    path = write(output, own)
    notes: list[str] = []

    def chosen(*, resume: bool, overwrite: bool = False) -> tuple[Path, int]:
        often = SnapshotConfig()
        plan = choose_snapshot(output, own, often, notes.append, resume=resume, overwrite=overwrite)
        return plan.path, plan.steps_done

    assert chosen(resume=True) == (path, 2)
    assert chosen(resume=False) == (snapshot_path(output, 1), 0)
    assert chosen(resume=False, overwrite=True) == (path, 0)
    assert [note.split(":")[0] for note in notes[:2]] == [
        f"resumes after step 2 of {own.request.num_inference_steps}",
        f"{path} is kept",
    ]


@pytest.mark.parametrize(
    ("error", "resume", "remains"),
    [
        (None, False, False),
        (KeyboardInterrupt(), False, False),
        (KeyboardInterrupt(), True, True),
        (EngineError("rank 1 died"), False, True),
    ],
)
def test_a_snapshot_is_kept_after_a_failure(
    tmp_path: Path, error: BaseException | None, resume: bool, remains: bool
) -> None:
    output, kept = tmp_path / "a.mp4", list[Path]()
    path = snapshot_path(output)
    try:
        with snapshot_kept_on_failure(path, kept.append, resume=resume):
            write(output, identity())
            if error is not None:
                raise error
    except EngineError as raised:
        assert str(raised).endswith("--resume continues from there")
    except KeyboardInterrupt:
        pass
    assert (path.exists(), kept) == (remains, [path] if remains else [])
