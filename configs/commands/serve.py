"""Options of the HTTP server."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from pydantic import Field

from longtake.configs.base import NamedPath, Seconds, StrictModel
from longtake.configs.commands.batch import Attempts
from longtake.configs.field_types import matches

Count = Annotated[int, Field(ge=1, le=1_000_000)]
ApiKey = Annotated[
    str,
    Field(min_length=8, max_length=512),
    matches(r"[\x21-\x7e]+", "of ASCII letters, digits and signs, without blanks"),
]


class ServeConfig(StrictModel):
    """Options of a server, on top of those of a rendering."""

    host: str = Field(
        default="127.0.0.1",
        min_length=1,
        description="Address to listen on; any other than loopback requires an API key",
    )
    port: Annotated[int, Field(ge=0, le=65535)] = Field(
        default=8000, description="Port to listen on; 0 picks a free one"
    )
    data_dir: NamedPath = Field(
        default=Path("longtake-data"),
        description="Folder for the videos and the queue; created if missing",
    )
    api_key: tuple[ApiKey, ...] = Field(
        default=(),
        description="API keys accepted from clients and the page; prefer the environment variable "
        "LONGTAKE_API_KEY (separated by spaces), which process lists do not show",
    )
    most_waiting: Count = Field(default=32, description="Maximum number of queued videos")
    most_waiting_per_key: Count = Field(
        default=16,
        description="Maximum number of queued videos per API key, if there are several keys",
    )
    attempts: Attempts = Field(
        default=5,
        description="Consecutive failures of a video without progress after which it fails",
    )
    keep_s: Seconds = Field(
        default=7 * 24 * 3600, description="Seconds after which a finished video is deleted"
    )
    longest_s: Seconds = Field(default=3600, description="Maximum planned seconds of one video")
    most_upload_mib: Annotated[int, Field(ge=1, le=64)] = Field(
        default=16, description="Maximum size of a request in MiB, including its picture"
    )
    request_timeout_s: Seconds = Field(
        default=60,
        description="Seconds for a client to send a request, or to receive the next part of a "
        "response",
    )
    embed_metadata: bool = Field(
        default=True,
        description="Write the prompt, seed and model into each video file; a request may override "
        "this",
    )
    page: bool = Field(default=True, description="Serve the web page as well as the API")
