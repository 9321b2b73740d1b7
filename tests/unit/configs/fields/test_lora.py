"""FILE[:SCALE][@COMPONENT] is read, and written back."""

from __future__ import annotations

import pytest
from pydantic import TypeAdapter, ValidationError

from longtake.configs.fields.lora import LoraText, LoraUse, parse_lora

READ = {
    "a.safetensors": LoraUse("a.safetensors"),
    "a.safetensors:0.8": LoraUse("a.safetensors", 0.8),
    "a.safetensors@transformer_2": LoraUse("a.safetensors", 1.0, "transformer_2"),
    "a:-1.5@transformer": LoraUse("a", -1.5, "transformer"),
    "a@transformer:0": LoraUse("a", 0.0, "transformer"),
    r"C:\loras\a.safetensors": LoraUse(r"C:\loras\a.safetensors"),
    "/me@home/a.safetensors:1e-3": LoraUse("/me@home/a.safetensors", 1e-3),
    "me@home.safetensors": LoraUse("me@home.safetensors"),
    "a:+.5E+1": LoraUse("a", 5.0),
    "a:b.safetensors:1": LoraUse("a:b.safetensors"),
    "猫.safetensors:2": LoraUse("猫.safetensors", 2.0),
}


@pytest.mark.parametrize("text", READ)
def test_read_and_written(text: str) -> None:
    use = parse_lora(text)
    assert use == READ[text]
    assert parse_lora(str(use)) == use
    assert TypeAdapter(LoraText).validate_python(text) == text


@pytest.mark.parametrize(
    ("text", "rule"),
    [
        ("", "must be written as FILE"),
        ("a:b", "must have a number from -1000 to 1000 behind its last colon"),
        ("a:", "must have a number"),
        ("a:nan", "must have a number"),
        ("a:-inf@transformer", "must have a number"),
        ("a:1001", "must have a number"),
        ("a:1_0", "must have a number"),
        ("a: 1", "must have a number"),
        ("a:\uff11", "must have a number"),
        ("a\n:1", "must be a printable name"),
        ("a\udcff", "unicode"),
        ("a" * 4097, "at most 4096 characters"),
    ],
)
def test_refused(text: str, rule: str) -> None:
    with pytest.raises(ValidationError, match=rule):
        TypeAdapter(LoraText).validate_python(text)
