"""Tables in Markdown."""

from __future__ import annotations

from longtake.engine.tools.bench.markdown import markdown_table


def test_short_rows_are_padded() -> None:
    table = markdown_table(["kernel", "ms", "error"], [["sdpa", "1.5", "0"], ["flash", "cannot"]])
    assert table.splitlines() == [
        "| kernel | ms | error |",
        "|---|---|---|",
        "| sdpa | 1.5 | 0 |",
        "| flash | cannot | |",
    ]
