"""Tables that fit the terminal."""

from __future__ import annotations

import pytest

from longtake.cli.table import Table


@pytest.mark.parametrize("width", [40, 60, 80, 1000])
def test_state_and_error_stay_visible(width: int) -> None:
    table = Table(
        ("id", "state", "took", "attempts", "output", "error"),
        shortened=("id", "output"),
        dropped=("output", "attempts", "took"),
        wrapped="error",
    )
    name, error = "a-long-name-" * 6, "rank 1 ran out of memory: try fewer frames"
    lines = list(table.lines([(name, "failed", "3:07", "5", f"{name}.mp4", error)], width))
    assert max(map(len, lines)) <= width
    assert "state" in lines[0]
    assert "failed" in lines[1]
    wide = lines[0].index("error")
    assert " ".join(line[wide:].strip() for line in lines[1:]) == error
    assert list(table.lines([("日本語" * 20, "done", "", "", "", "")], 40))[1].split()[1] == "done"
