"""longtake generate: a video from a prompt."""

from __future__ import annotations

from typing import Any

from longtake.cli.commands.output import output_spec, show
from longtake.cli.config_file import ConfigFile
from longtake.cli.settings import engine_config, given_values, pop_fields
from longtake.cli.terminal import View
from longtake.configs.request import VideoRequest
from longtake.configs.snapshot import SnapshotConfig
from longtake.engine.media.output_names import request_id
from longtake.engine.render_to_files import render_to_files


def run(options: dict[str, Any], view: View) -> None:
    """Render the request that the options describe."""
    file = ConfigFile(options["config"])
    given = given_values(options)
    if options["output"] is not None:
        given["output"] = options["output"]
    values = file.merge(given)
    resume = bool(values.pop("resume", False))
    snapshot_fields = pop_fields(values, SnapshotConfig)
    fields = pop_fields(values, VideoRequest)
    output = output_spec(
        values.pop("output", None),
        metadata=options["metadata"],
        overwrite=bool(values.pop("overwrite", False)),
        request_id=request_id(fields),
    )
    fields["output_type"] = output.output_type
    with file.naming_lines():
        request = VideoRequest(**fields)
        config, snapshots = engine_config(values), SnapshotConfig(**snapshot_fields)
        view.stop_timeout_s = config.stop_timeout_s
        rendered = render_to_files(
            config, request, output, view, snapshots=snapshots, resume=resume
        )
    show(rendered, view)
