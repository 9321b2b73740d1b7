"""The command line: help, options, and errors of one line."""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
from pathlib import Path

import pytest

from longtake.cli.command_line import parse
from longtake.cli.options import COMMANDS


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["genrate", "a"], "'genrate' is not a command: perhaps you meant generate"),
        (["job", "list"], "'job' is not a command: perhaps you meant jobs"),
        (["a cat"], "longtake generate 'a cat' renders a prompt"),
        (["xyz"], "'xyz' is not a command: use generate, batch"),
        (["--size", "64x64"], "--size before a command"),
        (["generate", "a", "--heigth", "3"], "perhaps you meant --height; see longtake generate"),
        (["generate", "a", "--steps", "3"], "perhaps you meant --num-inference-steps;"),
        (["generate", "a", "--Seed=3"], "perhaps you meant --seed;"),
        (
            ["generate", "a", "--dry-run"],
            "--dry-run is not an option of generate, but of batch, download;",
        ),
        (["generate", "a", "--no-json"], "--no-json is not an option of generate"),
        (["generate", "a", "cat"], "more words than one prompt (cat): put it in quotes"),
        (["generate", "-a cat"], "'-a cat' begins with a dash: put it after --"),
        (["generate", "a", "--seed"], "--seed needs a value"),
        (["generate", "--decode-tile-size", "3"], "--decode-tile-size needs FRAMES HEIGHT WIDTH"),
        (["generate", "a", "--seed", "--json"], "--seed needs a value"),
        (["jobs", "list", ".", "-o", "x"], "-o is not an option of jobs, but of generate, batch,"),
        (["generate", "--quiet=yes"], "--quiet takes no value"),
        (["generate", "-é"], "-é is not an option of generate"),
        (["doctor", "x"], "doctor takes no argument 'x'"),
        (["jobs"], "jobs needs list|show|cancel|retry and FOLDER"),
        (["decode"], "decode needs LATENTS.safetensors"),
        (["generate", "a caf\udce9"], r"the argument 'a caf\xe9' is not UTF-8: "),
        (["generate", "a", "-o", "\udce9.mp4"], r"the argument '\xe9.mp4' is not UTF-8: "),
    ],
)
def test_an_invalid_command_line_gives_one_line_of_error(
    arguments: list[str], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as caught:
        parse(arguments)
    out, err = capsys.readouterr()
    assert (caught.value.code, out, err.count("\n")) == (2, "", 1)
    assert err.startswith("longtake: ")
    assert words in err


@pytest.mark.parametrize(
    "arguments", [["help", "jobs"], ["jobs", "help"], ["--help", "jobs"], ["jobs", "-h"]]
)
def test_every_spelling_of_help_prints_the_help_of_the_command(
    arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as caught:
        parse(arguments)
    assert caught.value.code in (None, 0)
    assert "usage: longtake jobs" in capsys.readouterr().out


def test_no_command_prints_help_to_stderr(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        parse([])
    assert caught.value.code == 2
    assert "usage: longtake" in capsys.readouterr().err


def test_no_words_reach_an_error_of_tyro(capsys: pytest.CaptureFixture[str]) -> None:
    odd = ["a", "-1", "-", "-é", "---x", "--seed=", "--seed", "-o", "-oa", "--no-metadata=1", "="]
    for command in COMMANDS:
        for words in itertools.product(odd, repeat=2):
            try:
                parse([command, *words])
            except SystemExit as end:
                assert end.code == 2
            assert capsys.readouterr().err.count("\n") <= 1, words


@pytest.mark.parametrize("command", ["generate a", "batch s.txt -o out", "serve", "plan"])
def test_an_option_of_0_1_0_names_what_replaces_it(
    command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        parse([*command.split(), "--shard-weights"])
    assert "longtake: --shard-weights is now --weights split; see" in capsys.readouterr().err


def test_options_left_out_have_no_value() -> None:
    command, options = parse(
        ["generate", "a", "--no-embed-metadata", "--sigmas", "1", "0.5", "-ox"]
    )
    given = {name: value for name, value in options.items() if value not in (None, False)}
    assert command == "generate"
    assert given == {"prompt": "a", "sigmas": ("1", "0.5"), "output": "x", "metadata": True}
    assert options["embed_metadata"] is False
    assert options["weights"] is None
    assert {*options} == {option.name for option in COMMANDS["generate"].options}


def test_an_argument_of_the_shell_that_is_not_utf8_is_refused(tmp_path: Path) -> None:
    command = [os.fsencode(sys.executable), b"-m", b"longtake", b"generate", b"a caf\xe9"]
    ran = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path)
    assert ran.returncode == 2
    assert ran.stderr.startswith(r"longtake: the argument 'a caf\xe9' is not UTF-8: ")


@pytest.mark.parametrize("arguments", [["--help"], ["generate", "--help"], ["generate", "--x"]])
def test_parsing_imports_no_heavy_library(arguments: list[str]) -> None:
    program = (
        "import sys; from longtake.cli import main as cli\n"
        "try: cli.main(sys.argv[1:])\n"
        "except SystemExit: pass\n"
        "heavy = {'torch', 'numpy', 'diffusers', 'transformers', 'av', 'PIL', 'gradio'}\n"
        "sys.exit(' '.join(heavy & sys.modules.keys()) or 0)"
    )
    ran = subprocess.run(
        [sys.executable, "-c", program, *arguments], capture_output=True, text=True, check=False
    )
    assert ran.returncode == 0, ran.stderr
