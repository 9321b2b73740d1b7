"""Bundled hardware profiles, and profiles in files."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import BaseModel

from longtake.configs.hardware import Figure, Hardware, load_hardware, profiles
from longtake.errors import RequestError

FOLDER = Path(__file__).parents[3] / "configs" / "hardware"


def figures(part: Any, location: str = "") -> Iterator[tuple[str, Figure]]:
    """Yield every figure with its location."""
    if isinstance(part, Figure):
        yield location, part
    elif isinstance(part, BaseModel):
        yield from figures(dict(part), location)
    elif isinstance(part, dict):
        for name, value in part.items():
            yield from figures(value, f"{location}.{name}")
    elif isinstance(part, tuple):
        for at, value in enumerate(part):
            yield from figures(value, f"{location}[{at}]")


def test_profiles_lists_the_bundled_files() -> None:
    assert profiles() == sorted(path.stem for path in FOLDER.glob("*.yaml"))
    assert {"h100", "a800", "h20", "l20", "rtx4090", "cpu"} <= set(profiles())


@pytest.mark.parametrize("name", profiles())
def test_a_bundled_profile_is_consistent(name: str) -> None:
    hardware = load_hardware(name)
    assert load_hardware(name.upper()) == hardware
    found = dict(figures(hardware))
    assert len(found) >= 14
    for location, figure in found.items():
        assert len(figure.source.split()) >= 3, location
    assert (hardware.device == "cuda") == bool(hardware.names)
    assert {"float32", "bfloat16"} <= set(hardware.flops_per_s)
    assert hardware.device == "cpu" or hardware.host_bytes_per_s is not None
    assert hardware.device == "cpu" or hardware.host_memory_bytes is not None
    assert hardware.device == "cpu" or hardware.host_memory_bytes_per_s is not None
    assert hardware.unified_memory == (name == "dgx-spark")
    # An outer level has no more bandwidth per device than an inner one.
    for inner, outer in zip(hardware.links, hardware.links[1:], strict=False):
        assert outer.bytes_per_s.value / outer.shared_by <= inner.bytes_per_s.value
        assert outer.latency_s.value >= inner.latency_s.value
        assert outer.shared_by in (1, inner.spans)


def test_an_unknown_name_is_refused_with_the_known_ones() -> None:
    with pytest.raises(RequestError) as caught:
        load_hardware("voodoo2")
    assert str(caught.value).startswith("gpu='voodoo2' is unknown: use ")
    assert all(name in str(caught.value) for name in profiles())


def refusal(path: Path) -> str:
    with pytest.raises(RequestError) as caught:
        load_hardware(str(path))
    message = str(caught.value)
    assert repr(str(path)) in message and "\n" not in message
    return message


@pytest.mark.parametrize(
    "text", ["", "just words", "[1, 2]", "a: [", "\0", "names: [H100]", "7", "- &a [*a]"], ids=repr
)
def test_a_file_that_is_not_a_profile_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(text)
    assert "is not a hardware profile" in refusal(path)


def test_a_missing_or_binary_file_is_refused(tmp_path: Path) -> None:
    assert "cannot be read: No such file" in refusal(tmp_path / "mine.yaml")
    (tmp_path / "folder.yaml").mkdir()
    assert "cannot be read: Is a directory" in refusal(tmp_path / "folder.yaml")
    (tmp_path / "image.yml").write_bytes(b"\xff\xd8\xff\xe0")
    assert "is not a hardware profile" in refusal(tmp_path / "image.yml")


def changed(tmp_path: Path, **changes: Any) -> Path:
    """Write the L20 profile with some fields changed; return its path."""
    content = yaml.safe_load((FOLDER / "l20.yaml").read_text())
    path = tmp_path / "mine.yaml"
    path.write_text(yaml.safe_dump({**content, **changes}))
    return path


def links(*spans: int | None) -> list[dict[str, Any]]:
    figure = {"value": 1e9, "source": "invented for this test"}
    return [
        {"name": "some", "spans": each, "bytes_per_s": figure, "latency_s": figure}
        for each in spans
    ]


def test_a_profile_is_read_from_a_file(tmp_path: Path) -> None:
    path = changed(tmp_path, description="mine", links=links(2, 4, None))
    hardware = load_hardware(str(path))
    assert hardware.description == "mine"
    assert [each.spans for each in hardware.links] == [2, 4, None]
    assert load_hardware(str(changed(tmp_path))) == load_hardware("l20")


def test_a_tilde_is_expanded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    changed(tmp_path, description="at home")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert load_hardware("~/mine.yaml").description == "at home"


@pytest.mark.parametrize(
    "spans", [(4, 2, None), (2, 2, None), (2, 8), (None, 8), (None, None), ()], ids=str
)
def test_links_must_span_more_and_more_devices_up_to_all(
    tmp_path: Path, spans: tuple[int | None, ...]
) -> None:
    message = refusal(changed(tmp_path, links=links(*spans)))
    assert "links" in message


@pytest.mark.parametrize(
    "changes",
    [
        {"attention_share": {"value": 1.5, "source": "a guess of mine"}},
        {"attention_share": {"value": 0, "source": "a guess of mine"}},
        {"attention_share": 0.5},
        {"launch_s": {"value": -1, "source": "a guess of mine"}},
        {"launch_s": {"value": 1e-6}},
        {"launch_s": {"value": 1e-6, "source": ""}},
        {"launch_s": {"value": float("inf"), "source": "a guess of mine"}},
        {"flops_per_s": {}},
        {"flops_per_s": {"float8": {"value": 1e15, "source": "a guess of mine"}}},
        {"devices_per_node": 0},
        {"devices_per_node": True},
        {"color": "green"},
    ],
    ids=str,
)
def test_invalid_figures_are_refused(tmp_path: Path, changes: dict[str, Any]) -> None:
    (field,) = changes
    assert field in refusal(changed(tmp_path, **changes))


@pytest.mark.parametrize(
    ("driver", "expected"),
    [
        ("NVIDIA H100 80GB HBM3", "h100"),
        ("NVIDIA H100 80GB HBM3 MIG 1g.10gb", "h100"),
        ("NVIDIA H200", "h200"),
        ("NVIDIA H20", "h20"),
        ("NVIDIA GH200 480GB", None),
        ("NVIDIA B200", "b200"),
        ("NVIDIA GB200", None),
        ("NVIDIA A800-SXM4-80GB", "a800"),
        ("NVIDIA A100-SXM4-80GB", "a100-80g"),
        ("NVIDIA A100-SXM4-40GB", None),
        ("NVIDIA GeForce RTX 4090", "rtx4090"),
        ("NVIDIA GeForce RTX 3090", "rtx3090"),
        ("NVIDIA GeForce RTX 4080 SUPER", "rtx4080"),
        ("NVIDIA GeForce RTX 5080", "rtx5080"),
        ("NVIDIA GeForce RTX 5090", "rtx5090"),
        ("NVIDIA GeForce RTX 5070", None),
        ("NVIDIA RTX A6000", "a6000"),
        ("NVIDIA RTX 6000 Ada Generation", None),
        ("NVIDIA RTX PRO 6000 Blackwell Workstation Edition", "rtx-pro-6000"),
        ("NVIDIA GB10", "dgx-spark"),
        ("AMD Instinct MI300X", "mi300x"),
        ("nvidia geforce rtx 4090", "rtx4090"),
        ("NVIDIA L20", "l20"),
        ("NVIDIA L40", "l40"),
        ("NVIDIA L40S", "l40s"),
        ("NVIDIA L4", None),
        ("", None),
    ],
)
def test_device_names_of_drivers_match_one_profile(driver: str, expected: str | None) -> None:
    found = [name for name in profiles() if load_hardware(name).matches(driver)]
    assert found == ([expected] if expected else [])


def test_names_match_whole_words_only() -> None:
    hardware = load_hardware("h100")

    def hardware_named(*names: str) -> Hardware:
        return hardware.model_copy(update={"names": names})

    assert hardware_named("RTX 4090").matches("GeForce RTX-4090")
    assert not hardware_named("RTX 4090").matches("GeForce 4090 RTX")
    assert hardware_named("Nothing", "L40").matches("L40")
    assert not hardware_named().matches("NVIDIA H100")
