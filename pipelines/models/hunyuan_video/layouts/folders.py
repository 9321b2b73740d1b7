"""tencent's own folders, as their README says to download them, and the folder of one model."""

from __future__ import annotations

from longtake.pipelines.checkpoints.folders import PublisherFolder

_TRANSFORMERS = ("mp_rank_00_model_states.pt", "mp_rank_00_model_states_fp8.pt")


def _folder(name: str, inner: str, text_encoder: str) -> PublisherFolder:
    """One model in tencent's folder.

    Args:
        name: Name in messages.
        inner: Folder of the transformer and the autoencoder, with its trailing slash.
        text_encoder: Folder of the first text encoder and its tokenizer; empty if there is none.
    """
    encoders, tokenizers = {}, {}
    if text_encoder:
        encoders = {
            "text_encoder": (f"{text_encoder}/model*.safetensors",),
            "text_encoder_2": (
                "text_encoder_2/model.safetensors",
                "text_encoder_2/pytorch_model.bin",
            ),
        }
        tokenizers = {"tokenizer": text_encoder, "tokenizer_2": "text_encoder_2"}
    transformers = tuple(f"{inner}transformers/{file}" for file in _TRANSFORMERS)
    files = {"transformer": transformers, "vae": (f"{inner}vae/pytorch_model.pt",)}
    return PublisherFolder(name, files | encoders, tokenizers)


FOLDERS = (
    _folder("tencent's text to video", "hunyuan-video-t2v-720p/", "text_encoder"),
    _folder("tencent's image to video", "hunyuan-video-i2v-720p/", "text_encoder_i2v"),
    _folder("tencent's", "", ""),
)
