"""The names and the digest by which a server knows its model."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass


@dataclass(frozen=True)
class ServedModel:
    """The model that a server renders with.

    Attributes:
        name: Name that clients use.
        weights: The name, ``@``, and a part of the weights' fingerprint.
        digest: Digest of everything but the request that a video depends on: weights, dtypes and
            versions.
    """

    name: str
    weights: str
    digest: str

    @classmethod
    def of(cls, configured: str, identity: str) -> ServedModel:
        """The names of a model.

        Args:
            configured: The model as the user named it: a folder or a hub id.
            identity: As :meth:`EngineOutline.identity_part` returns it; starts with the weights'
                fingerprint.
        """
        name = configured.rstrip("/").rpartition("/")[2] or configured
        weights = f"{name}@{identity.split()[0][:16]}"
        return cls(name, weights, hashlib.sha256(identity.encode()).hexdigest())
