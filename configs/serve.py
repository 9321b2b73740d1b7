"""How videos are served over HTTP."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from pydantic import Field

from longtake.configs.base import NamedPath, StrictModel, written_as
from longtake.configs.batch import Attempts
from longtake.configs.engine import Seconds

Count = Annotated[int, Field(ge=1, le=1_000_000)]
ApiKey = Annotated[
    str,
    Field(min_length=8, max_length=512),
    written_as(r"[\x21-\x7e]+", "of ASCII letters, digits and signs, without blanks"),
]


class ServeConfig(StrictModel):
    """What a server takes beside what a rendering takes."""

    host: str = Field(
        default="127.0.0.1",
        min_length=1,
        description="Address to listen on; any but this host's own wants an API key",
    )
    port: Annotated[int, Field(ge=0, le=65535)] = Field(
        default=8000, description="Port to listen on; 0 takes a free one"
    )
    data_dir: NamedPath = Field(
        default=Path("longtake-data"),
        description="Folder of the videos and the queue; made if it is not there",
    )
    api_key: tuple[ApiKey, ...] = Field(
        default=(),
        description="Keys that clients and the page must give; better in the environment variable "
        "LONGTAKE_API_KEY, blanks between, where no list of processes shows them",
    )
    most_waiting: Count = Field(default=32, description="Videos that may wait")
    most_waiting_per_key: Count = Field(
        default=16, description="Of them, those of one API key, where there are several"
    )
    attempts: Attempts = Field(
        default=5, description="Faults of one video in a row, with no step gained, that fail it"
    )
    keep_s: Seconds = Field(
        default=7 * 24 * 3600, description="Seconds after which an ended video is deleted"
    )
    longest_s: Seconds = Field(
        default=3600, description="Seconds that one video may take, by the plan"
    )
    most_upload_mib: Annotated[int, Field(ge=1, le=64)] = Field(
        default=16, description="MiB that one request may have, its picture included"
    )
    request_timeout_s: Seconds = Field(
        default=60,
        description="Seconds that a client may take to send a request, or to take "
        "the next part of an answer",
    )
    embed_metadata: bool = Field(
        default=True,
        description="Write the prompt, the seed and the model into each video's file, unless its "
        "request says",
    )
    page: bool = Field(default=True, description="Serve the page, and not the API alone")
