"""What HunyuanVideo's configuration files say, read without importing diffusers."""

from __future__ import annotations

from longtake.configs.models import defaults_of
from longtake.errors import ModelError
from longtake.pipelines.base import ModelSpec
from longtake.pipelines.checkpoint import Checkpoint

CLASSES = {
    "transformer": "HunyuanVideoTransformer3DModel",
    "vae": "AutoencoderKLHunyuanVideo",
    "text_encoder": "LlamaModel",
    "text_encoder_2": "CLIPTextModel",
    "scheduler": "FlowMatchEulerDiscreteScheduler",
}

_SCHEDULER_SWITCHES = ("stochastic_sampling", "use_dynamic_shifting")


def inspect(checkpoint: Checkpoint) -> ModelSpec:
    """Check that a folder is a whole HunyuanVideo, and say what requests it can serve.

    Raises:
        ModelError: something is missing, damaged, or another model's.
    """
    for component, expected in CLASSES.items():
        found = checkpoint.component_class(component)
        if found != expected:
            raise ModelError(
                f"{checkpoint.model} has a {component} of class {found}: HunyuanVideo needs "
                f"{expected}"
            )
    for component in ("transformer", "vae", "text_encoder", "text_encoder_2"):
        checkpoint.weights(component)
        if "quantization_config" in checkpoint.config(component):
            raise ModelError(
                f"{checkpoint.folder / component} is quantized, which is not supported: use the "
                "weights in bfloat16, float16 or float32"
            )
    for component in ("tokenizer", "tokenizer_2"):
        checkpoint.config(component, "tokenizer_config.json")

    scheduler = checkpoint.config("scheduler", "scheduler_config.json")
    for switch in _SCHEDULER_SWITCHES:
        if scheduler.get(switch):
            raise ModelError(
                f"{checkpoint.folder / 'scheduler'} sets {switch}, which is not supported: "
                f"set it to false in scheduler_config.json"
            )
    transformer, vae = checkpoint.config("transformer"), checkpoint.config("vae")
    if transformer.get("image_condition_type") is not None:
        raise ModelError(
            f"{checkpoint.model} is conditioned on an image (image_condition_type="
            f"{transformer['image_condition_type']!r}): use a text-to-video model"
        )
    channels, latent_channels = transformer.get("in_channels", 16), vae.get("latent_channels", 16)
    if channels != latent_channels:
        raise ModelError(
            f"{checkpoint.model} has a transformer of {channels} channels and a vae of "
            f"{latent_channels}: they are not of the same model"
        )
    try:
        multiple = vae.get("spatial_compression_ratio", 8) * transformer.get("patch_size", 2)
        frames = vae.get("temporal_compression_ratio", 4) * transformer.get("patch_size_t", 1)
        return ModelSpec(
            num_heads=int(transformer.get("num_attention_heads", 24)),
            size_multiple=int(multiple),
            frames_multiple=int(frames),
            defaults=defaults_of(checkpoint.model, checkpoint.folder),
            flow_shift=float(scheduler.get("shift", 1.0)),
        )
    except (TypeError, ValueError) as error:
        raise ModelError(
            f"{checkpoint.folder} has sizes in its config.json that are no numbers: download or "
            f"save the model again"
        ) from error
