"""longtake batch: render a file of shots into a folder."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from longtake.cli.commands.batch_view import make_batch_view
from longtake.cli.commands.dry_run import plan_shots, show
from longtake.cli.settings import engine_config, given_values, pop_fields
from longtake.cli.terminal import View
from longtake.configs.commands.batch import BatchConfig
from longtake.configs.request import VideoRequest
from longtake.configs.snapshot import SnapshotConfig
from longtake.engine.resolve.outline import EngineOutline
from longtake.engine.torchrun import TorchrunEnvironment
from longtake.errors import RequestError
from longtake.serve.batch.batch import Batch
from longtake.serve.batch.shot_file import ShotFile, replica_configs

EXIT_SOME_LEFT = 1


def run(options: dict[str, Any], view: View) -> int:
    """Render the shots of a file. Returns 1 if some failed or were cancelled."""
    if TorchrunEnvironment.is_set():
        raise RequestError("batch under torchrun: it starts its ranks itself; pass --devices")
    values = given_values(options)
    source, folder = (
        Path(os.path.expanduser(values.pop(name, None) or "")) for name in ("shots", "outputs")
    )
    if not source.name or not folder.parts:
        raise RequestError("name a file of shots, and the folder of outputs by -o")
    batch_fields, snapshot_fields, defaults = (
        pop_fields(values, kind) for kind in (BatchConfig, SnapshotConfig, VideoRequest)
    )
    if defaults:
        VideoRequest(**{"prompt": "any", **defaults})
    config = engine_config(values)
    view.stop_timeout_s = config.stop_timeout_s
    settings, snapshots = BatchConfig(**batch_fields), SnapshotConfig(**snapshot_fields)
    if settings.dry_run:
        outline = EngineOutline(config)
        replica_configs(outline.config, settings.replicas)
        file = ShotFile(source, folder, outline, defaults)
        shots = plan_shots(file.shots(), outline.layouts, as_json=options["json"])
        if not shots:
            raise RequestError(f"{source} has no shots")
        view.close()
        show(shots, settings.replicas, quiet=options["quiet"], as_json=options["json"])
        return 0

    batch = Batch(source, folder, config, settings, snapshots, defaults)
    found = batch.check()
    view.close()  # the batch view takes over
    with make_batch_view(quiet=options["quiet"], as_json=options["json"]) as table:
        table.expect([shot.id for shot in found])
        try:
            jobs = batch.run(found, table)
        finally:
            view.written += table.reports
    return 0 if all(job.state == "done" for job in jobs) else EXIT_SOME_LEFT
