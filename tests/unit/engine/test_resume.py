"""What an interrupted rendering left is found again, and removed when it is of no more use."""

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
from longtake.pipelines.snapshots import LoopState
from tests.unit.pipelines.test_snapshots import identity


def write(output: Path, mine: Identity, steps_done: int = 2) -> Path:
    """Leave a snapshot next to an output."""
    path = snapshot_path(output)
    write_snapshot(path, mine, LoopState(steps_done, torch.zeros(1, 2, 1, 2, 2), {}))
    return path


def values(request: ResolvedRequest) -> dict[str, str]:
    return placeholder_values(seed=request.seed, name="a", model="m", num_videos=1)


def test_an_interrupted_rendering_is_found_by_its_template(tmp_path: Path) -> None:
    """With its seed, where another was drawn meanwhile."""
    mine = identity()
    output = tmp_path / f"a-{mine.request.seed}.mp4"
    write(output, mine)
    template = str(tmp_path / "a-{seed}.mp4")
    other = mine.request.model_copy(update={"seed": mine.request.seed + 1})
    found = find_interrupted(template, values(other), other, seed_drawn=True)
    assert found == (output, mine.request)
    assert find_interrupted(template, values(other), other, seed_drawn=False) is None


def test_kept_latents_are_those_of_the_same_rendering(tmp_path: Path) -> None:
    mine, output = identity(), tmp_path / "a.mp4"
    origin = Origin(request=mine.request, engine=EngineConfig(), identity=mine)
    path = kept_latents_path(output)
    path.write_bytes(latents_bytes(torch.ones(1, 2, 1, 2, 2).numpy(), origin))
    found = find_kept_latents(output, mine)
    assert found is not None
    assert (found.path, found.latents.shape) == (path, (1, 2, 1, 2, 2))
    assert find_kept_latents(output, mine.model_copy(update={"dtype": "bfloat16"})) is None
    assert find_kept_latents(tmp_path / "b.mp4", mine) is None


def test_another_snapshot_stays_unless_it_may_be_replaced(tmp_path: Path) -> None:
    mine, output = identity(), tmp_path / "a.mp4"
    path = write(output, mine)
    notes: list[str] = []

    def chosen(*, resume: bool, overwrite: bool = False) -> tuple[Path, int]:
        often = SnapshotConfig()
        plan = choose_snapshot(
            output, mine, often, notes.append, resume=resume, overwrite=overwrite
        )
        return plan.path, plan.steps_done

    assert chosen(resume=True) == (path, 2)
    assert chosen(resume=False) == (snapshot_path(output, 1), 0)
    assert chosen(resume=False, overwrite=True) == (path, 0)
    assert [note.split(":")[0] for note in notes[:2]] == [
        f"resumes after step 2 of {mine.request.num_inference_steps}",
        f"{path} is kept",
    ]


@pytest.mark.parametrize(
    ("error", "resume", "stays"),
    [
        (None, False, False),
        (KeyboardInterrupt(), False, False),
        (KeyboardInterrupt(), True, True),
        (EngineError("rank 1 died"), False, True),
    ],
)
def test_a_snapshot_stays_after_a_failure(
    tmp_path: Path, error: BaseException | None, resume: bool, stays: bool
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
    assert (path.exists(), kept) == (stays, [path] if stays else [])
