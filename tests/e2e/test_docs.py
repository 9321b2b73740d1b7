"""Commands, code and links in the README and in docs/.

Examples below ``<!-- run -->`` are executed on the CPU, in a folder for each page. In all others,
shell syntax, options of ``longtake`` commands, ``make`` targets, paths, imports and YAML are
checked. Each ``longtake plan`` is executed. An example below ``<!-- file: NAME -->`` is written to
that file first.
"""

from __future__ import annotations

import ast
import importlib
import importlib.util
import json
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml

from longtake.cli.command_line import parse
from longtake.cli.main import main
from longtake.configs.families import installed_families, load_reference
from longtake.configs.models import ModelDefaults, bundled, presets

ROOT = Path(__file__).parents[2]
THIS_CHECKOUT = {**os.environ, "PYTHONPATH": str(ROOT)}
PAGES = sorted(
    [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md"]
    + list((ROOT / "docs").rglob("*.md"))
)
GENERATED = {
    ROOT / "docs/reference/commands.md",
    ROOT / "docs/reference/models.md",
    ROOT / "docs/reference/training-costs.md",
    ROOT / "docs/development/contributing.md",
    ROOT / "docs/development/changelog.md",
}
"""Pages that exist only in the site; `make docs` checks links to them."""

_FENCE = re.compile(
    r"(?:^<!-- (?P<mark>[^\n]*) -->\n)?^```(?P<language>\w*)\n(?P<body>.*?)^```$", re.M | re.S
)
_SHELL = ("bash", "console")


@dataclass(frozen=True)
class Example:
    """A fenced block of a page.

    Attributes:
        mark: The HTML comment above the block; empty if there is none.
        line: The line number of the block in the page.
    """

    page: Path
    line: int
    mark: str
    language: str
    body: str

    def __str__(self) -> str:
        return f"{self.page.relative_to(ROOT)}:{self.line}"

    @property
    def commands(self) -> list[list[str]]:
        """The command lines of a shell example, split into words."""
        lines = self.body.replace("\\\n", " ").splitlines()
        return [words for line in lines if (words := shlex.split(line, comments=True))]


def examples(page: Path) -> list[Example]:
    """The fenced blocks of a page."""
    text = page.read_text()
    return [
        Example(
            page, text.count("\n", 0, found.start()) + 1, found["mark"] or "", *found.group(2, 3)
        )
        for found in _FENCE.finditer(text)
    ]


EXAMPLES = [example for page in PAGES for example in examples(page)]
SHELL = [example for example in EXAMPLES if example.language in _SHELL]
PYTHON = [example for example in EXAMPLES if example.language == "python"]
RUN_PAGES = sorted({example.page for example in EXAMPLES if example.mark == "run"})


def longtake_arguments(words: list[str]) -> list[str] | None:
    """The arguments of the ``longtake`` command in a command line; None if there is none."""
    while words and re.fullmatch(r"[A-Z_]+=.*", words[0]):
        words = words[1:]
    if words[0].endswith("longtake"):
        return words[1:]
    if "longtake" in words and words[words.index("longtake") - 1] == "-m":
        return words[words.index("longtake") + 1 :]
    return None


@pytest.mark.parametrize("example", SHELL, ids=str)
def test_shell_example_is_valid(example: Example, capsys: pytest.CaptureFixture[str]) -> None:
    checked = subprocess.run(
        ["bash", "-n"], input=example.body, capture_output=True, text=True, check=False
    )
    assert checked.returncode == 0, checked.stderr
    for words in example.commands:
        arguments = longtake_arguments(words)
        if arguments is not None:
            parse(arguments)
            if arguments[0] == "plan":
                assert main(arguments) == 0, capsys.readouterr().err
        elif words[0] == "make":
            check_make_target(words[1:])
        else:
            check_paths(words)


def check_make_target(words: list[str]) -> None:
    """Check that the Makefile has the target."""
    makefile = (ROOT / "Makefile").read_text()
    for word in words:
        if "=" not in word:
            assert re.search(rf"^{re.escape(word)}:", makefile, re.M), f"make {word}"


def check_paths(words: list[str]) -> None:
    """Check that scripts and modules of this repository exist."""
    for before, word in zip(["", *words], words, strict=False):
        if before == "-m" and word.split(".")[0] in ("benchmarks", "tests", "training"):
            assert importlib.util.find_spec(word) is not None, word
        elif re.match(r"(examples|tests|docs|benchmarks)/", word):
            assert (ROOT / word).exists(), word


@pytest.mark.parametrize("example", PYTHON, ids=str)
def test_python_example_uses_names_that_exist(example: Example) -> None:
    for path in re.findall(r'^--8<-- "(.*)"$', example.body, re.M):
        assert (ROOT / path).is_file(), path
    assert "8 < --" not in example.body, "formatted: put <!-- fmt: off --> above the example"
    code = re.sub(r"^--8<--.*$", "", example.body, flags=re.M)
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("longtake"):
            module = importlib.import_module(node.module or "")
            missing = [name.name for name in node.names if not hasattr(module, name.name)]
            assert missing == []


@pytest.mark.parametrize("example", [each for each in EXAMPLES if each.language == "yaml"], ids=str)
def test_yaml_example_is_valid(example: Example) -> None:
    assert yaml.safe_load(example.body)


@pytest.mark.parametrize("page", RUN_PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_examples_run(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for example in examples(page):
        if example.mark.startswith("file: "):
            Path(example.mark.removeprefix("file: ")).write_text(example.body)
        elif example.mark == "run" and example.language == "python":
            monkeypatch.setattr(sys, "argv", ["example.py"])
            exec(compile(example.body, str(example), "exec"), {"__name__": "__main__"})
        elif example.mark == "run":
            for words in example.commands:
                arguments = longtake_arguments(words)
                assert arguments is not None, f"{example}: only longtake is run: {words}"
                assert main(arguments) == 0, f"{example}: {shlex.join(words)}"


def predictions() -> list[list[str]]:
    """The rows of the README's tables of GPUs: model and video, GPUs, time, GiB, command."""
    lines = (ROOT / "README.md").read_text().splitlines()
    return [
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in lines
        if line.startswith("|") and "`longtake plan " in line
    ]


def test_readme_has_predictions() -> None:
    commands = [row[-1] for row in predictions()]
    assert sum("--model hunyuan-video " in each for each in commands) > 5
    assert sum("--model wan2." in each for each in commands) > 5


@pytest.mark.parametrize("row", predictions(), ids=lambda row: row[-1].strip("`"))
def test_prediction_of_the_readme_is_that_of_its_command(
    row: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    *kind, gpus, time, gib, command = row
    code = main([*shlex.split(command.strip("`"))[1:], "--json"])
    plan = json.loads(capsys.readouterr().out)
    request = plan["request"]
    shown = [request[name] for name in ("width", "height", "num_frames", "num_inference_steps")]
    default = "HunyuanVideo, 1280 x 720 x 129, 50 steps"
    name, size, steps = (kind or [default])[0].split(", ")
    assert [*map(int, size.split(" x ")), int(steps.removesuffix(" steps"))] == shown
    assert re.sub(r"[^a-z0-9.]", "", name.lower()) == preset_name(command)
    if time == "does not fit":
        assert code == 2
        assert f"needs {gib} GiB a rank" in plan["error"]
        return
    best = plan["best"]
    assert time == f"{best['end_to_end_s'] / 60:.1f} min"
    assert gib == f"{best['memory_bytes_per_rank'] / 2**30:.1f}"
    weights = best["layout"]["weights"]
    assert f"{weights} weights" in gpus if weights != "resident" else " weights" not in gpus


def preset_name(command: str) -> str:
    """The preset of a command, without what separates its words."""
    words = shlex.split(command.strip("`"))
    return words[words.index("--model") + 1].replace("-", "")


def test_sample_plans_are_printed_by_their_commands(capsys: pytest.CaptureFixture[str]) -> None:
    for page, command in (
        ("README.md", "plan --model hunyuan-video --gpu h100 --devices 8"),
        ("docs/explanation/planning.md", "plan --model hunyuan-video --gpu l20 --devices 8"),
    ):
        assert main(command.split()) == 0
        printed = [line.rstrip() for line in capsys.readouterr().out.splitlines()]
        sample = next(
            each.body for each in examples(ROOT / page) if each.body.startswith("129 frames of")
        )
        assert set(sample.splitlines()) <= set(printed)


RUN_IN_ONE_GROUP = """
import runpy, sys
import torch.distributed as dist

dist.init_process_group("gloo")
dist.init_process_group = dist.destroy_process_group = lambda *_: None
for script in sys.argv[1:]:
    runpy.run_path(script, run_name="__main__")
"""
"""Runs scripts one after another; under torchrun, a group cannot be made a second time."""


def test_attention_examples_equal_one_process() -> None:
    scripts = [ROOT / "examples/own_model.py", ROOT / "examples/attention.py"]
    scripts += sorted((ROOT / "examples/plugs").glob("*.py"))
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    completed = subprocess.run(
        [*launch, "--no-python", sys.executable, "-c", RUN_IN_ONE_GROUP, *map(str, scripts)],
        capture_output=True,
        text=True,
        check=False,
        env={**THIS_CHECKOUT, "CUDA_VISIBLE_DEVICES": ""},
    )
    assert completed.returncode == 0, completed.stderr
    differences = re.findall(r"^largest difference.*: (\S+)$", completed.stdout, re.M)
    assert len(differences) == len(scripts) == 5
    assert max(map(float, differences)) < 1e-5


def links(page: Path) -> Iterator[str]:
    """Relative targets of links and images outside of code."""
    text = re.sub(r"^```.*?^```$", "", page.read_text(), flags=re.M | re.S)
    text = re.sub(r"`[^`\n]*`", "", text)
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if not re.match(r"[a-z]+:", target):
            yield target


def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, as GitHub and mkdocs make them."""
    text = re.sub(r"^```.*?^```$", "", page.read_text(), flags=re.M | re.S)
    headings = re.findall(r"^#+ (.*)$", text, re.M)
    words = (re.sub(r"[^\w\- ]", "", heading.lower()).strip() for heading in headings)
    return {re.sub(r"[ -]+", "-", each) for each in words}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    broken = []
    for target in links(page):
        path, _, anchor = target.partition("#")
        found = (page.parent / path).resolve() if path else page
        if found in GENERATED:
            continue
        if not found.exists() or (anchor and anchor not in anchors(found)):
            broken.append(target)
    assert broken == []


def test_readme_fits_on_two_screens() -> None:
    assert len((ROOT / "README.md").read_text().splitlines()) <= 150


def generated_page(name: str) -> str:
    """A generated page in Markdown."""
    script = [sys.executable, str(ROOT / "docs/generated_pages.py"), name]
    completed = subprocess.run(
        script, env=THIS_CHECKOUT, capture_output=True, text=True, check=False
    )
    assert completed.returncode == 0, completed.stderr
    return completed.stdout


def test_models_page_has_every_preset_family_option_and_key() -> None:
    page = generated_page("models")
    families = installed_families().values()
    options = [key for each in families for key in load_reference(each.options).model_fields]
    for name in (*bundled(), *presets(), *options, *ModelDefaults.model_fields):
        assert re.search(rf"^\| `{re.escape(name)}` \|", page, re.M), name
    assert {"true_cfg_scale", "guidance_scale_2"} <= set(options)
    assert "| `guidance_scale_2` | `wan2.2-i2v-a14b`, `wan2.2-t2v-a14b` |" in page
    assert "`dynamic_flow_shift`" in page


def test_reference_has_every_option_of_the_help(capsys: pytest.CaptureFixture[str]) -> None:
    page = generated_page("commands")
    sections = re.split(r"^## longtake (\w+)$", page, flags=re.M)[1:]
    assert len(sections) == 2 * 13
    for command, section in zip(sections[::2], sections[1::2], strict=True):
        if command == "version":
            continue
        with pytest.raises(SystemExit):
            main([command, "--help"])
        shown = set(re.findall(r"^. (--[a-z0-9-]+)", capsys.readouterr().out, re.M))
        documented = set(re.findall(r"`(--[a-z0-9-]+)`", section))
        assert shown and shown <= documented, command
