"""Shapes of decoders from the keys of a config.json."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from longtake.configs.decoders import DecoderConfig, decoders, load_decoder
from longtake.errors import RequestError

SHAPE: dict[str, Any] = {
    "hidden_size": 64,
    "intermediate_size": 176,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "vocab_size": 100,
}


def written(folder: Path, **changes: Any) -> Path:
    path = folder / "config.json"
    path.write_text(json.dumps({**SHAPE, **changes}))
    return path


def test_bundled_shapes() -> None:
    assert decoders() == ["llama2-7b", "llama3-70b", "llama3-8b"]
    for name in decoders():
        config = load_decoder(name.upper())
        assert config.num_attention_heads * config.head_dim == config.hidden_size
        assert config.num_key_value_heads == (32 if name == "llama2-7b" else 8)


def test_a_file_or_its_folder(tmp_path: Path) -> None:
    path = written(tmp_path, rope_theta=1e6, torch_dtype="bfloat16", model_type="qwen2")
    assert load_decoder(str(path)) == load_decoder(str(tmp_path))
    config = load_decoder(str(path))
    assert (config.num_key_value_heads, config.head_dim) == (4, 16)
    assert not config.tie_word_embeddings


def test_heads_wider_than_the_stream(tmp_path: Path) -> None:
    path = written(tmp_path, head_dim=32, num_key_value_heads=2, tie_word_embeddings=True)
    config = load_decoder(str(path))
    assert (config.head_dim, config.num_key_value_heads) == (32, 2)
    assert config.tie_word_embeddings


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_type": "gpt2"}, "model_type='gpt2'"),
        ({"hidden_size": None}, "hidden_size"),
        ({"hidden_size": 66}, "is not a multiple of num_attention_heads=4: give head_dim"),
        ({"num_attention_heads": 0}, "num_attention_heads"),
        ({"num_key_value_heads": 3}, "is not a multiple of num_key_value_heads=3"),
        ({"vocab_size": -1}, "vocab_size=-1"),
        ({"num_hidden_layers": "many"}, "num_hidden_layers='many'"),
    ],
)
def test_invalid_shapes(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(RequestError) as caught:
        load_decoder(str(written(tmp_path, **changes)))
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_files_that_are_no_shapes(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    for content in ("[]", "3", "{", "\xff", "[" * 100_000):
        path.write_text(content, encoding="latin-1")
        with pytest.raises(RequestError, match="config.json' is no"):
            load_decoder(str(path))
    with pytest.raises(RequestError, match="cannot be read: No such file"):
        load_decoder(str(tmp_path / "absent.json"))
    with pytest.raises(RequestError, match="perhaps you meant llama3-8b"):
        load_decoder("llama3-8")


def test_a_shape_is_frozen() -> None:
    config = DecoderConfig(**SHAPE)
    with pytest.raises(ValueError, match="frozen"):
        config.hidden_size = 3
