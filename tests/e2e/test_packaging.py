"""Wheels, sdists and editable installs."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tarfile
import zipfile
from importlib.metadata import distribution
from pathlib import Path

import imageio.v3 as iio
import numpy as np
import pytest

from tests.quality.judge import Verdict, judge
from tests.quality.prompts import GREEN_TRIANGLE

ROOT = Path(__file__).parents[2]
FOLDERS = ("configs", "engine", "parallel", "pipelines", "serve")


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the files that git tracks, links included."""
    copy = tmp_path_factory.mktemp("checkout") / "longtake"
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        check=True,
        capture_output=True,
        text=True,
    ).stdout
    for name in filter(None, listed.split("\0")):
        source, target = ROOT / name, copy / name
        if source.is_symlink() or source.is_file():
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(source, target, follow_symlinks=False)
    return copy


def build(source: Path, kind: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """Build a wheel or an sdist without isolation."""
    command = [sys.executable, "-m", "build", "--no-isolation", f"--{kind}", f"--outdir={folder}"]
    return subprocess.run([*command, source], capture_output=True, text=True, check=False)


def sources() -> set[str]:
    """The package's modules, by their names in a wheel."""
    modules = {f"longtake/{path.name}" for path in (ROOT / "longtake").glob("*.py")}
    for folder in FOLDERS:
        modules |= {f"longtake/{path.relative_to(ROOT)}" for path in (ROOT / folder).rglob("*.py")}
    return modules


@pytest.fixture(scope="module")
def wheel(checkout: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel of this checkout."""
    folder = tmp_path_factory.mktemp("wheel")
    built = build(checkout, "wheel", folder)
    assert built.returncode == 0, built.stderr
    (path,) = folder.glob("*.whl")
    return path


def test_wheel_holds_only_longtake_without_links(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        assert {name.split("/")[0] for name in names if ".dist-info/" not in name} == {"longtake"}
        assert sources() <= names
        assert "longtake/py.typed" in names
        assert "longtake/configs/models/hunyuan-video/longtake.yaml" in names
        assert "longtake/configs/decoders/llama3-8b.json" in names
        for model in ("demo", "demo-i2v", "hunyuan-video-i2v"):
            folder = ROOT / "configs" / "models" / model
            files = [path for path in folder.rglob("*") if path.is_file()]
            assert {f"longtake/{path.relative_to(ROOT)}" for path in files} <= names
        source = (ROOT / "parallel" / "shards.py").read_bytes()
        assert archive.read("longtake/parallel/shards.py") == source
        assert any(name.endswith("licenses/LICENSE") for name in names)


@pytest.fixture(scope="module")
def site(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which the wheel is installed."""
    folder = tmp_path_factory.mktemp("site")
    install = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index"]
    subprocess.run([*install, "--target", folder, wheel], check=True, capture_output=True)
    return folder


def run_installed(site: Path, program: str, folder: Path) -> str:
    """Run a program that imports the installed wheel; returns its stdout."""
    path = f"import sys; sys.path.insert(0, {str(site)!r})\n"
    command = [sys.executable, "-W", "error", "-c", path + program]
    ran = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
    return ran.stdout


def test_installed_wheel_imports(site: Path, tmp_path: Path) -> None:
    assert {path.name for path in site.iterdir() if not path.name.endswith(".dist-info")} == {
        "bin",  # the command
        "longtake",
    }
    program = (
        "from longtake.parallel import ParallelDims, TokenShards, usp_attention\n"
        "import longtake\n"
        "print(longtake.__file__, longtake.__version__)"
    )
    printed = run_installed(site, program, tmp_path)
    assert printed.split() == [str(site / "longtake" / "__init__.py"), "0.1.0"]


def test_installed_wheel_renders_without_options(site: Path, tmp_path: Path) -> None:
    program = (
        "from longtake.cli import main as cli\n"
        f"sys.exit(cli.main(['generate', {GREEN_TRIANGLE!r}, '--seed', '1']))"
    )
    printed = run_installed(site, program, tmp_path)
    assert printed.startswith("out.mp4: 17 frames of 64x64, seed 1")
    assert {path.name for path in tmp_path.iterdir()} == {"out.mp4", "out.mp4.json"}
    frames = iio.imread(tmp_path / "out.mp4")
    assert judge((frames / 255).astype(np.float32)) == Verdict("green", "triangle", "up", "navy")


def test_sdist_builds_a_complete_wheel(checkout: Path, tmp_path: Path) -> None:
    built = build(checkout, "sdist", tmp_path)
    assert built.returncode == 0, built.stderr
    (archive_path,) = tmp_path.glob("*.tar.gz")
    with tarfile.open(archive_path) as archive:
        assert not any(member.issym() for member in archive.getmembers())
        archive.extractall(tmp_path / "unpacked", filter="data")
    (unpacked,) = (tmp_path / "unpacked").iterdir()
    built = build(unpacked, "wheel", tmp_path)
    assert built.returncode == 0, built.stderr
    (path,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(path) as wheel:
        assert sources() <= set(wheel.namelist())


@pytest.mark.parametrize("kind", ["wheel", "sdist"])
@pytest.mark.parametrize("left", ["text", "nothing"])
def test_checkout_without_links_does_not_build(
    checkout: Path, tmp_path: Path, kind: str, left: str
) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(checkout, copy, symlinks=True)
    for folder in FOLDERS:
        link = copy / "longtake" / folder
        target = link.readlink()
        link.unlink()
        if left == "text":
            link.write_text(str(target))
    built = build(copy, kind, tmp_path / "out")
    assert built.returncode != 0
    assert "cannot build longtake: longtake/configs, longtake/engine" in built.stderr + built.stdout
    assert "check the repository out with links" in built.stderr + built.stdout
    assert not list((tmp_path / "out").glob("*"))


def test_editable_install_is_a_plain_path_entry(checkout: Path, tmp_path: Path) -> None:
    program = f"from setuptools import build_meta; build_meta.build_editable({str(tmp_path)!r})"
    command = [sys.executable, "-c", program]
    subprocess.run(command, cwd=checkout, check=True, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path)
    (entry,) = tmp_path.glob("*.pth")
    assert entry.read_text().strip() == str(checkout)  # type checkers follow it

    # In the parent folder, the clone's folder has the package's name and comes first on the path.
    dependencies = str(distribution("lazy-loader").locate_file(""))
    found = (
        f"import site, sys; site.addsitedir({str(tmp_path)!r})\n"
        f"sys.path.append({dependencies!r})\n"  # without its .pth files
        "import longtake, longtake.__main__, longtake.parallel\n"
        "print(longtake.__file__)"
    )
    command = [sys.executable, "-S", "-c", found]
    ran = subprocess.run(command, cwd=checkout.parent, capture_output=True, text=True, check=False)
    assert ran.stdout.strip() == str(checkout / "longtake" / "__init__.py"), ran.stderr
