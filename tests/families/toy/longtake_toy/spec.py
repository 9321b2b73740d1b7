"""What a toy model takes, read from its configuration files; without torch."""

from longtake.configs.models import ModelDefaults, defaults_of
from longtake.pipelines.loading.checkpoint import Checkpoint
from longtake.pipelines.loading.component_config import Component, Count
from longtake.pipelines.spec import AutoencoderSpec, ModelSpec
from longtake_toy import Share, ToyOptions

PATCH = (1, 2, 2)  # latent frames, rows and columns in a token
TIME, SPACE = 2, 4  # frames, and rows and columns of pixels, in a latent; the first is one frame
TILE, STRIDE = (8, 64, 64), (6, 48, 48)  # of decoding: frames, rows and columns of pixels


class ToyDefaults(ModelDefaults, ToyOptions):
    """Values for what neither a request nor the model's longtake.yaml gives."""

    height: int = 32
    width: int = 48
    num_frames: int = 7
    num_inference_steps: int = 6
    guidance_scale: float = 4.0
    guidance_rescale: Share = 0.7
    negative_prompt: str = "noise"
    fps: float = 8.0
    max_sequence_length: int = 64


class ToyConfig(Component):
    """Content of transformer/config.json."""

    latent_channels: Count
    num_layers: Count
    num_heads: Count
    head_size: Count
    text_size: Count


def inspect(
    checkpoint: Checkpoint, *, weights: bool = True, autoencoder_only: bool = False
) -> ModelSpec:
    """Check a model's files, and return its specification."""
    if weights:
        checkpoint.require(["vae"] if autoencoder_only else ["vae", "transformer", "text_encoder"])
    config = checkpoint.parse_config(ToyConfig, "transformer")
    return ModelSpec(
        num_heads=config.num_heads,
        head_size=config.head_size,
        size_multiple=SPACE * PATCH[1],
        frames_multiple=TIME,
        patch=PATCH,
        autoencoder=AutoencoderSpec(config.latent_channels, SPACE, TIME, TILE, STRIDE),
        defaults=defaults_of(checkpoint.defaults_name, checkpoint.folder, ToyDefaults()),
        flow_shift=3.0,
        options=ToyOptions,
        scale_field="guidance_scale",
    )
