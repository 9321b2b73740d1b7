"""Refuses to build a package whose links to the five folders are missing; the rest: pyproject.toml.

Some archives, and git on Windows without `core.symlinks`, leave a text file in a link's place.
setuptools would then build, in silence, a package with almost nothing in it.
"""

from pathlib import Path

from setuptools import setup

FOLDERS = ("configs", "engine", "parallel", "pipelines", "serve")

package = Path(__file__).resolve().parent / "longtake"
missing = [name for name in FOLDERS if not (package / name / "__init__.py").is_file()]
if missing:
    raise SystemExit(
        f"cannot build longtake: {', '.join(f'longtake/{name}' for name in missing)} should be a "
        "link to the folder of that name beside longtake/: check the repository out with links "
        "(git config core.symlinks true; git checkout -- longtake), or build from an sdist"
    )

setup()
