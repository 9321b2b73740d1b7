"""What latents depend on: those of equal identity are equal, bit by bit, in the same layout."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from pydantic import BaseModel

from longtake.configs.engine import EngineConfig
from longtake.configs.request import NON_LATENT_FIELDS, PICTURES, ResolvedRequest
from longtake.version import library_versions

_PIXEL_VERSIONS = ("longtake", "torch", "diffusers", "transformers")


class Identity(BaseModel):
    """Everything that latents depend on.

    Attributes:
        request: The request.
        model: Fingerprint of the model's files; see :meth:`Checkpoint.fingerprint`.
        dtype: Dtype of weights and activations, and the type of fewer bits that weights are stored
            in, if they are; with pictures, also the dtype of the autoencoder, which encodes them.
        versions: Versions of longtake, of the libraries that compute and, if the model's family is
            from another package, of that one, by name.
    """

    request: ResolvedRequest
    model: str
    dtype: str
    versions: dict[str, str]

    @classmethod
    def of(
        cls,
        request: ResolvedRequest,
        engine: EngineConfig,
        model: str,
        family: Mapping[str, str] = MappingProxyType({}),
    ) -> Identity:
        """The identity of a rendering by this installation.

        Args:
            request: The request.
            engine: The engine's configuration, with resolved dtypes.
            model: Fingerprint of the model's files.
            family: Version of the package of the model's family, by name; empty for longtake's own.
        """
        installed = library_versions()
        named = {name: installed[name] for name in _PIXEL_VERSIONS if name in installed}
        named |= family
        dtype = engine.weights_dtype
        if any(getattr(request, f"{name}_sha256") is not None for name in PICTURES):
            dtype += f", the vae's {engine.vae_dtype}"
        return cls(request=request, model=model, dtype=dtype, versions=named)

    def difference_from(self, other: Identity) -> str:
        """The first difference that changes latents, in words; empty if there is none."""
        own, others = _latent_fields(self.request), _latent_fields(other.request)
        for name in own:
            if own[name] != others[name]:
                return f"another request: {name}={others[name]!r}, not {own[name]!r}"
        if self.model != other.model:
            return "another model, or other weights"
        if self.dtype != other.dtype:
            return f"another dtype: {other.dtype}, not {self.dtype}"
        for name, version in self.versions.items():
            if other.versions.get(name) != version:
                return f"another version: {name} {other.versions.get(name)}, not {version}"
        return ""


def _latent_fields(request: ResolvedRequest) -> dict[str, Any]:
    """The fields that affect the latents, by name."""
    fields = {name: value for name, value in request if name not in NON_LATENT_FIELDS}
    return {**fields, "lora": request.lora_scales}
