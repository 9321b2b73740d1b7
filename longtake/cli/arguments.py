"""What commands take that no request and no engine declares: files, folders, and how to talk."""

from __future__ import annotations

from dataclasses import field
from typing import Annotated, Any

import tyro

OUTPUT: list[tuple[str, Any, Any]] = [
    (
        "output",
        Annotated[
            str | None,
            tyro.conf.arg(
                aliases=["-o"],
                metavar="PATH",
                help="File that is written: .mp4, .webm, .gif, .npy (float32 frames), "
                ".safetensors (latents; generate only), or a folder for .png; {seed}, {id}, "
                "{date}, {model} and {index} are filled in",
                help_behavior_hint="(default: out.mp4, or out-2.mp4 and so on where that is there)",
            ),
        ],
        field(default=None),
    ),
    (
        "metadata",
        Annotated[
            bool,
            tyro.conf.arg(
                help="Write a .json beside the video; --no-metadata also writes no prompt, seed "
                "and model into it"
            ),
        ],
        field(default=True),
    ),
    (
        "overwrite",
        Annotated[
            bool,
            tyro.conf.FlagCreatePairsOff,
            tyro.conf.arg(help="Replace the video, and its .json, that stand there"),
        ],
        field(default=False),
    ),
]

TALK: list[tuple[str, Any, Any]] = [
    (
        "quiet",
        Annotated[
            bool,
            tyro.conf.FlagCreatePairsOff,
            tyro.conf.arg(help="Print nothing but warnings and errors"),
        ],
        field(default=False),
    ),
    (
        "json",
        Annotated[
            bool,
            tyro.conf.FlagCreatePairsOff,
            tyro.conf.arg(help="Print JSON, of progress an event a line"),
        ],
        field(default=False),
    ),
]

CONFIG: tuple[str, Any, Any] = (
    "config",
    Annotated[
        str | None,
        tyro.conf.arg(
            metavar="FILE",
            help="YAML file of options, which flags override; or a video's .json, to render "
            "it again",
            help_behavior_hint="",
        ),
    ],
    field(default=None),
)
LATENTS: tuple[str, Any, Any] = (
    "latents",
    Annotated[
        str | None,
        tyro.conf.Positional,
        tyro.conf.arg(
            metavar="LATENTS.safetensors",
            help="What generate -o x.safetensors wrote, or kept when decoding failed",
            help_behavior_hint="",
        ),
    ],
    field(default=None),
)

PROMPT: tuple[str, Any, Any] = (
    "prompt_option",
    Annotated[
        str | None,
        tyro.conf.arg(
            name="prompt",
            metavar="TEXT",
            help="The same by name",
            help_behavior_hint="",
        ),
    ],
    field(default=None),
)

RESUME: tuple[str, Any, Any] = (
    "resume",
    Annotated[
        bool,
        tyro.conf.FlagCreatePairsOff,
        tyro.conf.arg(
            help="Go on from the snapshot that a rendering of the same left beside the output, if "
            "there is one"
        ),
    ],
    field(default=False),
)

SHOTS: list[tuple[str, Any, Any]] = [
    (
        "shots",
        Annotated[
            str | None,
            tyro.conf.Positional,
            tyro.conf.arg(
                metavar="SHOTS",
                help="A row a shot, .jsonl or .csv, with any option of generate by its name, and "
                "id and output; .txt, a prompt a line; or .yaml, defaults, shots and product",
                help_behavior_hint="",
            ),
        ],
        field(default=None),
    ),
    (
        "outputs",
        Annotated[
            str | None,
            tyro.conf.arg(
                name="output",
                aliases=["-o"],
                metavar="FOLDER",
                help="Where the videos go, the queue, and a report",
                help_behavior_hint="",
            ),
        ],
        field(default=None),
    ),
]
JOBS: list[tuple[str, Any, Any]] = [
    (
        "action",
        Annotated[
            str | None,
            tyro.conf.Positional,
            tyro.conf.arg(
                metavar="list|show|cancel|retry",
                help="retry without ids: all that failed; cancel and show want some",
                help_behavior_hint="",
            ),
        ],
        field(default=None),
    ),
    (
        "folder",
        Annotated[
            str | None,
            tyro.conf.Positional,
            tyro.conf.arg(
                metavar="FOLDER", help="That longtake batch writes to", help_behavior_hint=""
            ),
        ],
        field(default=None),
    ),
    (
        "ids",
        Annotated[
            tuple[str, ...],
            tyro.conf.Positional,
            tyro.conf.arg(metavar="ID", help="Of jobs", help_behavior_hint=""),
        ],
        field(default=()),
    ),
]
