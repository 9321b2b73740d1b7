"""The names and the digest by which a server knows its model."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

from longtake.engine.outline import EngineOutline


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
    def of(cls, engine: EngineOutline, configured: str) -> ServedModel:
        """The identity of an engine's model.

        Args:
            engine: The engine.
            configured: The model as the user named it: a folder or a hub id.
        """
        name = configured.rstrip("/").rpartition("/")[2] or configured
        identity = engine.identity_part()
        weights = f"{name}@{identity.split()[0][:16]}"
        return cls(name, weights, hashlib.sha256(identity.encode()).hexdigest())
