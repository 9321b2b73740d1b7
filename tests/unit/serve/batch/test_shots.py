"""Reading shots files, and messages about invalid rows."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest

from longtake.errors import RequestError
from longtake.serve.batch.shots import MAX_LINE_BYTES, as_fields, read_shots


def read(tmp_path: Path, name: str, content: str | bytes) -> tuple[list[Any], list[str]]:
    path = tmp_path / name
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    rows, bad = read_shots(path)
    return [(row.line, row.values) for row in rows], [str(each) for each in bad]


def test_json_lines(tmp_path: Path) -> None:
    content = '\ufeff{"prompt": "a", "seed": 3}\r\n\n  {"prompt": "ü\\nb", "sigmas": [1, 0.5]}  '
    rows, bad = read(tmp_path, "a.jsonl", content)
    assert rows == [
        (1, {"prompt": "a", "seed": 3}),
        (3, {"prompt": "ü\nb", "sigmas": [1, 0.5]}),
    ]
    assert bad == []


def test_invalid_json_lines_do_not_hide_others(tmp_path: Path) -> None:
    lines: list[bytes] = [
        b'{"prompt": "a"',
        b"[1, 2]",
        b'{"prompt": "a", "prompt": "b"}',
        b'{"prompt": "\xff\xfe"}',
        b'{"prompt": "\\ud800"}',
        b'{"prompt": "' + b"x" * 10_000_000 + b'"}',
        b"[" * 100_000,
        b'{"prompt": "good"}',
        b"\x00\x01\x02",
    ]
    rows, bad = read(tmp_path, "a.jsonl", b"\n".join(lines))
    assert rows == [(8, {"prompt": "good"})]
    assert [each.partition(":")[0] for each in bad] == [
        f"line {n}" for n in (1, 2, 3, 4, 5, 6, 7, 9)
    ]
    words = [
        "is not JSON",
        "not a JSON object",
        "prompt twice",
        "UTF-8",
        "UTF-8",
        "characters long",
    ]
    assert all(word in each for word, each in zip(words, bad, strict=False))
    assert max(map(len, bad)) < 300
    assert MAX_LINE_BYTES < 10_000_000


def test_csv(tmp_path: Path) -> None:
    content = (
        'id,prompt,seed,sigmas\r\n1,"a ""cat"", slowly",3,\r\n\r\n'
        '2,"two\nlines",,1 0.5\n3,short\n4,too,1,2,3\n'
    )
    rows, bad = read(tmp_path, "a.csv", content)
    assert rows == [
        (2, {"id": "1", "prompt": 'a "cat", slowly', "seed": "3"}),
        (4, {"id": "2", "prompt": "two\nlines", "sigmas": "1 0.5"}),
        (6, {"id": "3", "prompt": "short"}),
    ]
    assert bad == ["line 7: has 5 cells under 4 columns"]
    assert as_fields(rows[1][1])["sigmas"] == ["1", "0.5"]


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b'prompt\n"never ends\na\n', "is not CSV"),
        (b"id,seed\n1,2\n", "must name each column once, and one of them prompt"),
        (b"prompt,prompt\na,b\n", "must name each column once"),
        (b"prompt\n\xff\n", "line 2: is not UTF-8"),
        (b"prompt\n" + b"x" * (MAX_LINE_BYTES + 9) + b"\n", "field larger than"),
    ],
)
def test_invalid_csv(tmp_path: Path, content: bytes, words: str) -> None:
    rows, bad = read(tmp_path, "a.csv", content)
    assert rows == []
    assert len(bad) == 1
    assert words in bad[0]


def test_text_files_have_one_prompt_per_line(tmp_path: Path) -> None:
    rows, bad = read(tmp_path, "a.txt", "a cat\n\n  # no comment \nlast")
    assert [(line, each["prompt"]) for line, each in rows] == [
        (1, "a cat"),
        (3, "# no comment"),
        (4, "last"),
    ]
    assert bad == []


def test_yaml(tmp_path: Path) -> None:
    content = """
defaults: {height: 64, seed: 7}
product: {guidance_scale: [1, 6]}
shots:
  - a cat
  - prompt: a dog
    id: dog
    output: dogs/dog.mp4
    product:
      seed: [1, 2]
"""
    rows, bad = read(tmp_path, "a.yaml", content)
    assert bad == []
    assert [line for line, _ in rows] == [5, 5, 6, 6, 6, 6]
    values = [row for _, row in rows]
    assert values[0] == {"height": "64", "seed": "7", "prompt": "a cat", "guidance_scale": "1"}
    assert values[5] == {
        "height": "64",
        "seed": "2",
        "prompt": "a dog",
        "guidance_scale": "6",
        "id": "dog-4",
        "output": "dogs/dog-4.mp4",
    }


@pytest.mark.parametrize(
    ("content", "line", "words"),
    [
        ("- a\n", 1, "must map shots to a list"),
        ("", 1, "must map shots to a list"),
        ("shots: {a: b}\n", 1, "must have shots, a list"),
        ("shots:\n  - a\nshoots: []\n", 3, "has shoots: use defaults, shots and product"),
        ("shots:\n  - a\n  - [1, 2]\n", 3, "a shot must map fields to values"),
        ("shots:\n  - {prompt: a, seed: 1, seed: 2}\n", 2, "has seed twice"),
        ("defaults: {seed: 1, seed: 2}\nshots: []\n", 1, "has seed twice"),
        ("shots:\n  - {prompt: a, product: [1]}\n", 2, "product must map fields to lists"),
        ("shots:\n  - {prompt: a, product: {seed: 1}}\n", 2, "product of seed must be a list"),
        ("shots:\n  - 'never ends\n", 3, "is not YAML"),
        ("shots:\n  - !!python/object/apply:os.system ['id']\n", 2, "has the tag"),
        ("shots:\n  - {prompt: !!python/name:os.system x}\n", 2, "has the tag"),
        (
            "shots:\n  - prompt: a\n    product:\n      seed: [" + "1, " * 400 + "1]\n"
            "      fps: [" + "1, " * 400 + "1]\n",
            2,
            "makes 160801 shots, 100000 at most",
        ),
    ],
)
def test_invalid_yaml(tmp_path: Path, content: str, line: int, words: str) -> None:
    _, bad = read(tmp_path, "a.yml", content)
    assert len(bad) == 1
    assert bad[0].startswith(f"line {line}: ")
    assert words in bad[0]


def test_yaml_that_is_not_utf8(tmp_path: Path) -> None:
    rows, bad = read(tmp_path, "a.yaml", b"shots:\n  - a\n  - \xff\n")
    assert (rows, bad) == ([], ["line 3: is not UTF-8: save the file in that encoding"])


@pytest.mark.parametrize(
    ("content", "line", "words"),
    [
        ("shots:\n  - a\n  - " + "[" * 100_000, 3, "is nested deeper than 20"),
        (
            "a: &a [x, x, x, x, x, x, x, x, x, x]\n"
            + "".join(
                f"{y}: &{y} [{', '.join([f'*{x}'] * 10)}]\n"
                for x, y in zip("abcdef", "bcdefg", strict=True)
            )
            + "shots: [*g]\n",
            7,
            "has more than 10000000 values",
        ),
        ("shots: [a]\nshots: [b]\n", 2, "has shots twice"),
    ],
)
def test_yaml_with_too_many_shots_is_refused(
    tmp_path: Path, content: str, line: int, words: str
) -> None:
    rows, bad = read(tmp_path, "a.yaml", content)
    assert rows == []
    assert len(bad) == 1
    assert bad[0].startswith(f"line {line}: ")
    assert words in bad[0]


def test_an_invalid_yaml_shot_does_not_hide_others(tmp_path: Path) -> None:
    content = """
shots:
  - &base {prompt: a, seed: 1}
  - {<<: *base, seed: 2}
  - *base
  - ~
  - {prompt: b, seed: 2024-13-45}
  - {prompt: !!python/name:os.system x}
  - {prompt: c, id: null, output: "", product: {seed: [1, 2]}}
  - {[1, 2]: 3}
"""
    rows, bad = read(tmp_path, "a.yaml", content)
    assert [line for line, _ in rows] == [3, 4, 5, 7, 9, 9]
    assert rows[1][1] == {"prompt": "a", "seed": "2"}
    assert rows[3][1] == {"prompt": "b", "seed": "2024-13-45"}
    assert rows[5][1] == {"prompt": "c", "id": None, "output": "", "seed": "2"}
    assert [each.partition(":")[0] for each in bad] == ["line 6", "line 8", "line 10"]


def test_long_files_are_no_slower_for_what_is_wrong_with_them(tmp_path: Path) -> None:
    begun = time.perf_counter()
    rows, bad = read(tmp_path, "a.txt", b"\xff\n" * 20_000)
    assert (len(rows), len(bad)) == (0, 20_000)
    keys = ", ".join(f'"{number}": 1' for number in range(20_000))
    _, bad = read(tmp_path, "a.jsonl", "{" + keys + ', "7": 2}\n' + "[" * 900 + "]" * 900)
    assert bad[0] == "line 1: has 7 twice"
    assert bad[1].startswith("line 2: is not a JSON object")
    _, bad = read(tmp_path, "a.jsonl", '{"prompt": ' + "[" * 900 + "]" * 900 + "}")
    assert time.perf_counter() - begun < 5


def test_unreadable_shots_files_are_refused(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").mkdir()
    for name, words in (
        ("a.doc", r"has the suffix '\.doc': use \.jsonl, \.csv, \.txt, \.yaml"),
        ("a.jsonl", "cannot be read: Is a directory$"),
        ("none.csv", "cannot be read: No such file or directory$"),
    ):
        with pytest.raises(RequestError, match=words):
            read_shots(tmp_path / name)


def test_a_thousand_rows_are_read_quickly(tmp_path: Path) -> None:
    rows, bad = read(
        tmp_path, "a.jsonl", "".join(json.dumps({"prompt": f"{n}"}) + "\n" for n in range(1000))
    )
    assert (len(rows), bad) == (1000, [])
