"""Validated fields of AutoencoderKLWan's configuration file, with diffusers' defaults."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Literal, NamedTuple

from pydantic import Field, model_validator

from longtake.pipelines.loading.component_config import Component, Count, Flag, NumLayers, Positive

_MEANS = (
    *(-0.7571, -0.7089, -0.9113, 0.1075, -0.1745, 0.9653, -0.1517, 1.5508),
    *(0.4134, -0.0715, 0.5517, -0.3632, -0.1922, -0.9497, 0.2503, -0.2921),
)
_DEVIATIONS = (
    *(2.8184, 1.4541, 2.3275, 2.6558, 1.2196, 1.7708, 2.6052, 2.0743),
    *(3.2687, 2.1526, 2.8652, 1.5579, 1.6382, 1.1253, 2.8251, 1.9160),
)

Mean = Annotated[float, Field(strict=True, ge=-1e9, le=1e9, allow_inf_nan=False)]


class Block(NamedTuple):
    """A block of the encoder or the decoder.

    Attributes:
        channels_in: Channels before its residual blocks; 2.1's upsampling halves them on the way.
        channels: Channels after its residual blocks.
        in_time: Factor of its resampling in time: 1 or 2.
        in_space: Factor of its resampling in height and width: 1 or 2.
    """

    channels_in: int
    channels: int
    in_time: int
    in_space: int


class VaeConfig(Component):
    """Configuration of AutoencoderKLWan: 2.1, or 2.2's residual one, which patchifies pixels."""

    base_dim: Count = 96
    decoder_base_dim: Count | None = None
    z_dim: Count = 16
    dim_mult: Annotated[tuple[Count, ...], Field(min_length=1, max_length=16)] = (1, 2, 4, 4)
    num_res_blocks: Annotated[NumLayers, Field(ge=1)] = 2
    attn_scales: tuple[()] = ()
    temperal_downsample: tuple[Flag, ...] = (False, True, True)
    latents_mean: tuple[Mean, ...] = _MEANS
    latents_std: tuple[Positive, ...] = _DEVIATIONS
    is_residual: Flag = False
    in_channels: Count = 3
    out_channels: Count = 3
    patch_size: Count | None = None
    scale_factor_temporal: Literal[4] = 4
    scale_factor_spatial: Count = 8

    @model_validator(mode="after")
    def _check_scales(self) -> VaeConfig:
        halvings = len(self.dim_mult) - 1
        if len(self.temperal_downsample) != halvings:
            raise ValueError("temperal_downsample must be one shorter than dim_mult")
        if 2 ** sum(self.temperal_downsample) != self.scale_factor_temporal:
            raise ValueError("temperal_downsample must be true twice: the temporal factor is 4")
        in_space = self.patch * 2**halvings
        if self.scale_factor_spatial != in_space:
            raise ValueError(
                f"scale_factor_spatial={self.scale_factor_spatial} must be {in_space}: patch_size, "
                "doubled by each entry of dim_mult but the last"
            )
        return self

    @model_validator(mode="after")
    def _check_channels(self) -> VaeConfig:
        pixels = 3 * self.patch**2
        if {self.in_channels, self.out_channels} != {pixels}:
            raise ValueError(f"in_channels and out_channels must be {pixels}: 3 x patch_size^2")
        if {len(self.latents_mean), len(self.latents_std)} != {self.z_dim}:
            raise ValueError(f"latents_mean and latents_std must have z_dim={self.z_dim} values")
        if self.is_residual:
            self._check_shortcuts()
        return self

    def _check_shortcuts(self) -> None:
        """The residual autoencoder's shortcuts average or repeat whole groups of channels."""
        encoder = ((block, block.channels_in, block.channels) for block in self.encoder_blocks)
        decoder = ((block, block.channels, block.channels_in) for block in self.decoder_blocks[:-1])
        for block, many, few in (*encoder, *decoder):
            if many * block.in_time * block.in_space**2 % few:
                raise ValueError(
                    f"dim_mult={self.dim_mult}: a residual shortcut cannot group "
                    f"{block.channels_in} channels into {block.channels}"
                )

    @property
    def patch(self) -> int:
        """Rows and columns of pixels in one position of the encoder's input."""
        return self.patch_size or 1

    @property
    def encoder_blocks(self) -> list[Block]:
        """The encoder's blocks, in execution order."""
        dims = [self.base_dim * times for times in (1, *self.dim_mult)]
        return _blocks(dims, self.temperal_downsample)

    @property
    def decoder_blocks(self) -> list[Block]:
        """The decoder's blocks, in execution order."""
        base = self.decoder_base_dim or self.base_dim
        dims = [base * times for times in (self.dim_mult[-1], *reversed(self.dim_mult))]
        return _blocks(dims, self.temperal_downsample[::-1])


def _blocks(dims: Sequence[int], in_time: Sequence[bool]) -> list[Block]:
    """Blocks between these channels; all but the last resample."""
    scales = [*((2 if each else 1, 2) for each in in_time), (1, 1)]
    return [
        Block(channels_in, channels, *scale)
        for channels_in, channels, scale in zip(dims, dims[1:], scales, strict=False)
    ]
