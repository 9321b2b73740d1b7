"""Generates the pages that are not written by hand. mkdocs loads this file as a hook.

The reference of commands comes from their declarations; ``python docs/generated_pages.py`` prints
it. CONTRIBUTING.md and CHANGELOG.md come from the root of the repository.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import tyro

from longtake.cli.options import COMMANDS

if TYPE_CHECKING:
    from mkdocs.config.defaults import MkDocsConfig
    from mkdocs.structure.files import Files
    from mkdocs.structure.pages import Page

ROOT = Path(__file__).parents[1]
COMMANDS_PAGE = "reference/commands.md"
COPIED_PAGES = {
    "development/contributing.md": ROOT / "CONTRIBUTING.md",
    "development/changelog.md": ROOT / "CHANGELOG.md",
}


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the generated pages to the site."""
    from mkdocs.structure.files import File

    files.append(File.generated(config, COMMANDS_PAGE, content=commands_page()))
    for page, source in COPIED_PAGES.items():
        files.append(File.generated(config, page, content=source.read_text()))
    return files


def on_page_content(html: str, page: Page, **_: Any) -> str:
    """Drop the roles of Sphinx before names in docstrings: editors read them, Markdown does not."""
    return re.sub(r":(?:class|func|meth|mod):(?=<code>)", "", html)


def commands_page() -> str:
    """The reference in Markdown: a section and a table of options for each command."""
    sections = [_INTRODUCTION]
    for command, (options, description) in COMMANDS.items():
        rows = list(_rows(options))
        lines = [f"## longtake {command}", description]
        if rows:
            lines.append("\n".join(["| option | value | meaning |", "|---|---|---|", *rows]))
        sections.append("\n\n".join(lines))
    return "\n\n".join(sections) + "\n"


_INTRODUCTION = """\
# Commands and options

This page is generated from the declarations that the command line itself is built from.
`longtake COMMAND --help` prints the same. An option that is left out takes its default, or, where
none is given here, the model's own value.
"""


def _rows(options: Any) -> Iterator[str]:
    """A table row for each option of a command."""
    for option in fields(options):
        kind, *marks = get_args(option.type)
        argument = next(mark for mark in marks if hasattr(mark, "aliases"))
        name = (argument.name or option.name).replace("_", "-")
        if tyro.conf.Positional in marks:
            spelling, value = f"`{argument.metavar}`", "positional"
        elif kind is bool:
            negative = tyro.conf.FlagCreatePairsOff not in marks
            spelling = f"`--{name}`" + (f", `--no-{name}`" if negative else "")
            value = "flag"
        else:
            spelling = ", ".join(f"`{each}`" for each in [f"--{name}", *(argument.aliases or ())])
            value = f"`{argument.metavar}`"
        default = argument.help_behavior_hint
        meaning = f"{argument.help or ''} {default if isinstance(default, str) else ''}".strip()
        yield f"| {spelling} | {value} | {meaning.replace('|', '&#124;').replace('<', '&lt;')} |"


if __name__ == "__main__":
    print(commands_page())
