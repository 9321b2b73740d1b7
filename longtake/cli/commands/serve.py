"""longtake serve: serve an HTTP API and a page."""

from __future__ import annotations

import logging
import os
import sys
from typing import Any

from longtake.cli.settings import engine_config, given_values, pop_fields
from longtake.cli.terminal import View, print_line
from longtake.configs.commands.serve import ServeConfig
from longtake.configs.snapshot import SnapshotConfig
from longtake.engine.torchrun import TorchrunEnvironment
from longtake.errors import RequestError
from longtake.serve.server import serve

API_KEYS_VARIABLE = "LONGTAKE_API_KEY"


def run(options: dict[str, Any], view: View) -> None:
    """Serve until a signal ends it."""
    if TorchrunEnvironment.is_set():
        raise RequestError("serve under torchrun: it starts its ranks itself; pass --devices")
    values = given_values(options)
    if "api_key" not in values and os.environ.get(API_KEYS_VARIABLE):
        values["api_key"] = os.environ[API_KEYS_VARIABLE].split()
    serve_fields = pop_fields(values, ServeConfig)
    snapshot_fields = pop_fields(values, SnapshotConfig)
    config = engine_config(values)
    view.stop_timeout_s = config.stop_timeout_s
    settings, snapshots = ServeConfig(**serve_fields), SnapshotConfig(**snapshot_fields)
    logging.getLogger("longtake.serve").setLevel(logging.INFO)
    view.close()  # progress is in the log

    def announce(address: str) -> None:
        if not options["quiet"]:
            print_line(
                f"longtake: {config.model} at {address}, videos in {settings.data_dir}", sys.stderr
            )

    serve(config, settings, snapshots, announce)
    raise KeyboardInterrupt  # the exit path of all interrupted commands
