"""Names and digest of a server's model."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass


@dataclass(frozen=True)
class ServedModel:
    """The model that a server renders with.

    Attributes:
        name: Name for clients.
        weights: ``NAME@FINGERPRINT``, with the start of the weights' fingerprint.
        digest: Digest of everything except the request that a video depends on: weights, dtypes
            and versions.
    """

    name: str
    weights: str
    digest: str

    @classmethod
    def of(cls, configured: str, identity: str) -> ServedModel:
        """The names of a model.

        Args:
            configured: The configured model: a folder or a hub id.
            identity: Result of :meth:`EngineOutline.identity_part`; starts with the weights'
                fingerprint.
        """
        name = configured.rstrip("/").rpartition("/")[2] or configured
        weights = f"{name}@{identity.split()[0][:16]}"
        return cls(name, weights, hashlib.sha256(identity.encode()).hexdigest())
