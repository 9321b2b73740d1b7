"""Generates the pages that are not written by hand. mkdocs loads this file as a hook.

The reference of commands comes from their declarations; ``python docs/generated_pages.py`` prints
it. CONTRIBUTING.md and CHANGELOG.md come from the root of the repository.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from longtake.cli.options import COMMANDS, Option

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
    for name, command in COMMANDS.items():
        sections.append(f"## longtake {name}\n\n{command.summary}")
        if command.options:
            rows = map(_row, command.options)
            sections.append("\n".join(["| option | value | meaning |", "|---|---|---|", *rows]))
    return "\n\n".join(sections) + "\n"


_INTRODUCTION = """\
# Commands and options

This page is generated from the declarations that the command line itself is built from.
`longtake COMMAND --help` prints the same. An option that is left out takes its default, or, where
none is given here, the model's own value.
"""


def _row(option: Option) -> str:
    """A row of a command's table."""
    spelling = ", ".join(f"`{each}`" for each in option.flags or (option.metavar,))
    if option.positional:
        value = "positional"
    else:
        value = "flag" if option.num_values == 0 else f"`{option.metavar}`"
    meaning = f"{option.help} {option.hint}".strip()
    return f"| {spelling} | {value} | {meaning.replace('|', '&#124;').replace('<', '&lt;')} |"


if __name__ == "__main__":
    print(commands_page())
