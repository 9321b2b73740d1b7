"""Downloads files of a repository from the Hugging Face hub into its cache."""

from __future__ import annotations

import errno
import logging
import re
from collections.abc import Sequence
from pathlib import Path

from longtake.configs.models import bundled, presets
from longtake.errors import ModelError, one_line

logger = logging.getLogger(__name__)

_HUB_ID = re.compile(r"[^./~][^/]*/[^/]+")


def fetch(repository: str, revision: str | None, names: Sequence[str]) -> Path:
    """Download files of a repository. Names not in the repository are ignored.

    Cached files are used when the hub is unreachable.

    Args:
        repository: The hub id, ``owner/name``.
        revision: Branch, tag or commit; None is the latest.
        names: Paths of the files in the repository.

    Returns:
        The folder of the downloaded files, named after the commit.

    Raises:
        ModelError: The repository is not a hub id, or cannot be downloaded.
    """
    from huggingface_hub import snapshot_download

    if not _HUB_ID.fullmatch(repository):
        raise ModelError(
            f"there is no folder {repository}: pass a model's folder in diffusers layout, a hub "
            "id (owner/name), or "
            f"{' or '.join([*bundled(), *presets()])}"
        )
    try:
        return Path(snapshot_download(repository, revision=revision, allow_patterns=list(names)))
    except Exception as error:  # HTTP exceptions differ between versions of huggingface_hub
        raise ModelError(
            f"there is no folder {repository}, and it cannot be downloaded from the hub at "
            f"revision {revision or 'main'}: {_remedy(repository, error)} ({type(error).__name__})"
        ) from error


def listed_files(repository: str, commit: str) -> list[str] | None:
    """Names of all files of a repository; None if the hub is unreachable."""
    from huggingface_hub import HfApi, constants

    try:
        files = HfApi().model_info(repository, revision=commit, timeout=10).siblings
        return [file.rfilename for file in files or []]
    except Exception as error:  # as above
        if not constants.HF_HUB_OFFLINE:
            logger.warning(
                "the hub does not list the files of %s: using those downloaded earlier (%s)",
                repository,
                one_line(error)[:200],
            )
        return None


def cache_folder(name: str) -> Path | None:
    """A folder for files that longtake makes itself, beside the hub's (``HF_HOME``).

    Args:
        name: What the files are.

    Returns:
        The folder, which exists; None if it cannot be created.
    """
    from huggingface_hub import cached_assets_path

    try:
        return cached_assets_path("longtake", namespace=name)
    except (OSError, ValueError) as error:
        logger.debug("nothing is kept of %s: %s", name, one_line(error))
        return None


def _remedy(repository: str, error: Exception) -> str:
    from huggingface_hub.errors import (
        GatedRepoError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return "the disk is full; make room, or name another folder in HF_HOME"
    if isinstance(error, GatedRepoError):
        return f"accept its terms at https://huggingface.co/{repository}, and set HF_TOKEN"
    if isinstance(error, RepositoryNotFoundError):
        return "check the name; if it is private, set HF_TOKEN"
    if isinstance(error, RevisionNotFoundError):
        return "check the revision"
    return "check the name, the network and your access"
