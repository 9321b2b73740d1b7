"""HunyuanVideo's transformer over split tokens.

Legend: B videos, C channels, F H W latent frames, height and width, s this rank's video tokens, t
its text tokens, L text tokens of the whole prompt, P values in one token, D width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from diffusers import HunyuanVideoTransformer3DModel
from torch import nn
from torch.distributed.device_mesh import DeviceMesh

from longtake.configs.request import ResolvedRequest
from longtake.parallel import ParallelDims, TokenShards
from longtake.parallel.mesh import sequence_rank
from longtake.pipelines.base import Denoiser, Streams
from longtake.pipelines.hunyuan_video.attention import SequencePlace, UspAttnProcessor
from longtake.pipelines.hunyuan_video.rope import video_rotation
from longtake.pipelines.spec import LatentGrid, shards_of


@dataclass(frozen=True)
class HunyuanVideoBranch:
    """What one branch of guidance needs at each step of one video.

    Attributes:
        place: of this rank's tokens in ``[video ; text]``.
        text_shards: who owns which text tokens.
        text: ``[B, L, text width]``, whole: it is refined before it is split.
        pooled: ``[B, pooled width]``.
        guidance: ``[B]``, float32, the embedded scale x 1000.
        num_still: this rank's first tokens that are the picture's (token_replace): they take the
            modulation of noise level 0, and stay as they are.
        beside: ``[B, s, P']``, values that each token takes in besides its own (latent_concat): the
            picture's latents and where they are. None: there are none.
    """

    place: SequencePlace
    text_shards: TokenShards
    text: torch.Tensor
    pooled: torch.Tensor
    guidance: torch.Tensor
    num_still: int = 0
    beside: torch.Tensor | None = None


class HunyuanVideoDenoiser(Denoiser[HunyuanVideoBranch]):
    """Calls diffusers' embedders, refiner, blocks and output layers on this rank's tokens.

    Args:
        transformer: of text-to-video, or of image-to-video in either way of taking a picture; its
            blocks' attention is replaced by one across ranks.
        kernel: name of the local attention kernel.
    """

    def __init__(self, transformer: HunyuanVideoTransformer3DModel, kernel: str = "auto") -> None:
        super().__init__()
        self.transformer = transformer
        self._kernel = kernel
        config = transformer.config
        self._conditioning = config.image_condition_type
        self._patch = (config.patch_size_t, config.patch_size, config.patch_size)
        self._width = config.num_attention_heads * config.attention_head_dim
        across_ranks = UspAttnProcessor()
        transformer.set_attn_processor(
            {
                name: own if name.startswith("context_embedder.") else across_ranks
                for name, own in transformer.attn_processors.items()
            }
        )

    @property
    def blocks(self) -> Sequence[nn.Module]:
        """The double-stream blocks, then the single-stream ones."""
        return [*self.transformer.transformer_blocks, *self.transformer.single_transformer_blocks]

    def branch(
        self,
        streams: Streams,
        grid: LatentGrid,
        dims: ParallelDims,
        mesh: DeviceMesh | None,
        request: ResolvedRequest,
        image: torch.Tensor | None = None,
    ) -> HunyuanVideoBranch:
        """Prepare one branch. ``streams``: text ``[1, L, text width]``, pooled ``[1, width]``."""
        batch = grid.shape[0]
        device, dtype = streams["text"].device, self.transformer.dtype
        shards, video_shards, text_shards = shards_of(
            grid.num_tokens, streams["text"].shape[1], dims
        )
        rotation = video_rotation(self.transformer.rope, grid, request.num_frames, device)
        still = rotation.new_ones(text_shards.num_tokens, rotation.shape[1])
        own_rotation = torch.cat(
            [video_shards.split(rotation, mesh, dim=0), text_shards.split(still, mesh, dim=0)]
        )
        num_still, beside = 0, None
        if self._conditioning == "token_replace":
            first_frame = video_shards.segment(range(grid.num_tokens // grid.cells[0]))
            num_still = first_frame.counts[sequence_rank(mesh)]
        elif self._conditioning == "latent_concat":
            assert image is not None
            whole = _picture_and_place(image.to(device), grid)
            beside = video_shards.split(whole, mesh, dim=1).to(dtype).expand(batch, -1, -1)
        return HunyuanVideoBranch(
            place=SequencePlace(shards, mesh, own_rotation, self._kernel),
            text_shards=text_shards,
            text=streams["text"].to(dtype).expand(batch, -1, -1),
            pooled=streams["pooled"].to(dtype).expand(batch, -1),
            guidance=torch.full((batch,), request.guidance_scale * 1000.0, device=device),
            num_still=num_still,
            beside=beside,
        )

    def forward(
        self, tokens: torch.Tensor, timestep: torch.Tensor, branch: HunyuanVideoBranch
    ) -> torch.Tensor:
        """The velocity of this rank's video tokens, ``[B, s, P]``."""
        model, place = self.transformer, branch.place
        timesteps = timestep.expand(len(tokens))
        modulation, of_still = model.time_text_embed(timesteps, branch.pooled, branch.guidance)
        still = (of_still, branch.num_still)  # which blocks without token_replace ignore
        values = tokens.to(branch.text.dtype)
        if branch.beside is not None:
            values = torch.cat([values, branch.beside], dim=-1)
        video = self._embed(values)
        text = model.context_embedder(branch.text, timesteps)
        text = branch.text_shards.split(text, place.mesh, dim=1)

        for block in model.transformer_blocks:
            video, text = block(video, text, modulation, None, place, *still)
        # Where a single-stream block is cut does not matter to it, but behind the cut must be one
        # token at least, and a rank may own no text.
        own = torch.cat([video, text], dim=1)
        before, behind = own.tensor_split((max(own.shape[1] - 1, 0),), dim=1)
        del video, text, own  # each as large as an activation, and dead
        for block in model.single_transformer_blocks:
            before, behind = block(before, behind, modulation, None, place, *still)
        video = torch.cat([before, behind], dim=1)[:, : tokens.shape[1]]

        velocity: torch.Tensor = model.proj_out(model.norm_out(video, modulation))
        velocity[:, : branch.num_still] = 0
        return velocity

    def _embed(self, tokens: torch.Tensor) -> torch.Tensor:
        """``[B, s, P]`` to ``[B, s, D]``: the tokens embedded as one row of patches."""
        batch, num_tokens, _ = tokens.shape
        if num_tokens == 0:
            return tokens.new_empty(batch, 0, self._width)
        frames, rows, columns = self._patch
        patches = tokens.unflatten(-1, (-1, frames, rows, columns))
        row = patches.permute(0, 2, 3, 4, 1, 5).flatten(-2)  # [B, C, frames, rows, s x columns]
        embedded: torch.Tensor = self.transformer.x_embedder(row)
        return embedded


def _picture_and_place(image: torch.Tensor, grid: LatentGrid) -> torch.Tensor:
    """What latent_concat puts beside the latents, as tokens ``[1, S, P']`` of the whole video.

    Args:
        image: ``[1, C, 1, H, W]``: in the first frame, before a channel that is 1 there; all later
            frames are 0.
    """
    _, channels, *size = grid.shape
    whole = image.new_zeros(1, channels + 1, *size)
    whole[:, :channels, :1] = image
    whole[:, channels, :1] = 1
    return LatentGrid((1, channels + 1, *grid.shape[2:]), grid.patch).patchify(whole)
