"""Downloads files of a repository from the Hugging Face hub into its cache."""

from __future__ import annotations

import errno
import hashlib
import logging
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from longtake.configs.models import bundled, presets
from longtake.errors import ModelError, one_line
from longtake.files.reading import open_regular

logger = logging.getLogger(__name__)

_HUB_ID = re.compile(r"[^./~][^/]*/[^/]+")

_CHUNK_BYTES = 2**22


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
    missing = f"there is no folder {repository}, and it"
    with _failures_as_errors(missing, repository, revision):
        return Path(snapshot_download(repository, revision=revision, allow_patterns=list(names)))


def downloaded_folder(repository: str) -> Path | None:
    """Folder of the files of a repository that were downloaded earlier; None if none were.

    The hub is not asked.
    """
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(repository, allow_patterns=[], local_files_only=True))
    except (OSError, ValueError):
        return None


@dataclass(frozen=True)
class HubFile:
    """A file of a repository, as the hub lists it.

    Attributes:
        name: Its path in the repository.
        num_bytes: Its size.
        sha256: Digest of its content; None for a small file, which git stores itself.
        git_hash: Git's hash of the content of such a file.
    """

    name: str
    num_bytes: int
    sha256: str | None
    git_hash: str

    def matches(self, path: Path, on_read: Callable[[int], None] = lambda num_bytes: None) -> bool:
        """Whether a file on this machine has this content.

        Args:
            path: The file.
            on_read: Called with the number of bytes that were read, several times.

        Raises:
            ModelError: The file cannot be read.
        """
        try:
            if path.stat().st_size != self.num_bytes:
                return False
            if self.sha256 is None:  # git's hash of a blob
                header = f"blob {self.num_bytes}\0".encode()
                digest, expected = hashlib.sha1(header, usedforsecurity=False), self.git_hash
            else:
                digest, expected = hashlib.sha256(), self.sha256
            with open_regular(path) as file:
                while chunk := file.read(_CHUNK_BYTES):
                    digest.update(chunk)
                    on_read(len(chunk))
        except OSError as error:
            raise ModelError(f"{path} cannot be read: {error.strerror}") from error
        return digest.hexdigest() == expected


def describe_files(repository: str, commit: str, names: Sequence[str]) -> list[HubFile]:
    """Sizes and digests of files of a repository, from the hub.

    Raises:
        ModelError: The hub does not list a file, or cannot be reached.
    """
    from huggingface_hub import HfApi, RepoFile

    with _failures_as_errors(f"the list of files of {repository}", repository, commit):
        found = HfApi().get_paths_info(repository, list(names), revision=commit)
    files = [each for each in found if isinstance(each, RepoFile)]
    if missing := sorted({*names} - {each.path for each in files}):
        raise ModelError(
            f"{repository} has no {missing[0]} at revision {commit}, which is read: name another "
            "revision, or a repository that is complete"
        )
    return [
        HubFile(each.path, each.size, each.lfs.sha256 if each.lfs else None, each.blob_id)
        for each in files
    ]


def downloaded_file(repository: str, commit: str, name: str) -> Path | None:
    """A file of a repository that was downloaded earlier; None if it was not."""
    from huggingface_hub import try_to_load_from_cache

    path = try_to_load_from_cache(repository, name, revision=commit)
    return Path(path) if isinstance(path, str) else None


def fetch_file(repository: str, commit: str, name: str) -> Path:
    """Download a file of a repository that is not here.

    A connection that breaks is continued; one that fails for good leaves nothing of the file.

    Raises:
        ModelError: It cannot be downloaded.
    """
    from huggingface_hub import hf_hub_download

    with _failures_as_errors(f"{name} of {repository}", repository, commit):
        return Path(hf_hub_download(repository, name, revision=commit))


def discard(path: Path) -> None:
    """Remove a file of the cache, so that it is downloaded again.

    Args:
        path: What :func:`downloaded_file` or :func:`fetch_file` returned.
    """
    for each in (path.resolve(), path):  # the content, and the link to it
        each.unlink(missing_ok=True)


def blobs_folder(repository: str) -> Path:
    """Folder in which the hub's cache keeps what is downloaded of a repository."""
    from huggingface_hub import constants
    from huggingface_hub.file_download import repo_folder_name

    folder = repo_folder_name(repo_id=repository, repo_type="model")
    return Path(constants.HF_HUB_CACHE) / folder / "blobs"


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


@contextmanager
def _failures_as_errors(what: str, repository: str, revision: str | None) -> Iterator[None]:
    """Raise what huggingface_hub raises as ModelError, with a way out.

    Args:
        what: What cannot be downloaded.
        repository: The hub id.
        revision: Branch, tag or commit; None is the latest.
    """
    try:
        yield
    except Exception as error:  # HTTP exceptions differ between versions of huggingface_hub
        raise ModelError(
            f"{what} cannot be downloaded from the hub at revision {revision or 'main'}: "
            f"{_remedy(repository, error)} ({type(error).__name__})"
        ) from error


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
