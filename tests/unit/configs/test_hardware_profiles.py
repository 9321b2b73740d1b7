"""The profiles of hardware that come with the package, and files that are none."""

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


def figures(part: Any, place: str = "") -> Iterator[tuple[str, Figure]]:
    """Every number that has a source, and where it stands."""
    if isinstance(part, Figure):
        yield place, part
    elif isinstance(part, BaseModel):
        yield from figures(dict(part), place)
    elif isinstance(part, dict):
        for name, value in part.items():
            yield from figures(value, f"{place}.{name}")
    elif isinstance(part, tuple):
        for at, value in enumerate(part):
            yield from figures(value, f"{place}[{at}]")


def test_there_are_some() -> None:
    assert profiles() == sorted(path.stem for path in FOLDER.glob("*.yaml"))
    assert {"h100", "a800", "h20", "l20", "rtx4090", "cpu"} <= set(profiles())


@pytest.mark.parametrize("name", profiles())
def test_a_profile(name: str) -> None:
    hardware = load_hardware(name)
    assert load_hardware(name.upper()) == hardware
    found = dict(figures(hardware))
    assert len(found) >= 14
    for place, figure in found.items():
        assert len(figure.source.split()) >= 3, place
    assert (hardware.device == "cuda") == bool(hardware.names)
    assert {"float32", "bfloat16"} <= set(hardware.flops_per_s)
    assert hardware.device == "cpu" or hardware.host_bytes_per_s is not None
    # No level lets more through than one within it, for as many devices.
    for inner, outer in zip(hardware.links, hardware.links[1:], strict=False):
        assert outer.bytes_per_s.value / outer.shared_by <= inner.bytes_per_s.value
        assert outer.latency_s.value >= inner.latency_s.value
        assert outer.shared_by in (1, inner.spans)


def test_a_name_that_is_not_known() -> None:
    with pytest.raises(RequestError) as caught:
        load_hardware("voodoo2")
    assert str(caught.value).startswith("gpu='voodoo2' is unknown: use ")
    assert all(name in str(caught.value) for name in profiles())


def refused(path: Path) -> str:
    with pytest.raises(RequestError) as caught:
        load_hardware(str(path))
    message = str(caught.value)
    assert repr(str(path)) in message and "\n" not in message
    return message


@pytest.mark.parametrize(
    "text", ["", "just words", "[1, 2]", "a: [", "\0", "names: [H100]", "7", "- &a [*a]"], ids=repr
)
def test_a_file_that_is_no_profile(tmp_path: Path, text: str) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(text)
    assert "is not a hardware profile" in refused(path)


def test_a_file_that_is_not_there_or_not_text(tmp_path: Path) -> None:
    assert "cannot be read: No such file" in refused(tmp_path / "mine.yaml")
    (tmp_path / "folder.yaml").mkdir()
    assert "cannot be read: Is a directory" in refused(tmp_path / "folder.yaml")
    (tmp_path / "image.yml").write_bytes(b"\xff\xd8\xff\xe0")
    assert "is not a hardware profile" in refused(tmp_path / "image.yml")


def changed(tmp_path: Path, **changes: Any) -> Path:
    """A file with a profile of which some fields are others."""
    content = yaml.safe_load((FOLDER / "l20.yaml").read_text())
    path = tmp_path / "mine.yaml"
    path.write_text(yaml.safe_dump({**content, **changes}))
    return path


def links(*spans: int | None) -> list[dict[str, Any]]:
    figure = {"value": 1e9, "source": "made up for this test"}
    return [
        {"name": "some", "spans": each, "bytes_per_s": figure, "latency_s": figure}
        for each in spans
    ]


def test_a_profile_of_ones_own(tmp_path: Path) -> None:
    path = changed(tmp_path, description="mine", links=links(2, 4, None))
    hardware = load_hardware(str(path))
    assert hardware.description == "mine"
    assert [each.spans for each in hardware.links] == [2, 4, None]
    assert load_hardware(str(changed(tmp_path))) == load_hardware("l20")


def test_a_file_in_the_home_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    changed(tmp_path, description="at home")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert load_hardware("~/mine.yaml").description == "at home"


@pytest.mark.parametrize(
    "spans", [(4, 2, None), (2, 2, None), (2, 8), (None, 8), (None, None), ()], ids=str
)
def test_links_out_of_order_or_without_an_end(
    tmp_path: Path, spans: tuple[int | None, ...]
) -> None:
    message = refused(changed(tmp_path, links=links(*spans)))
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
def test_figures_that_cannot_be(tmp_path: Path, changes: dict[str, Any]) -> None:
    (field,) = changes
    assert field in refused(changed(tmp_path, **changes))


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
        ("NVIDIA GeForce RTX 3090", None),
        ("nvidia geforce rtx 4090", "rtx4090"),
        ("NVIDIA L20", "l20"),
        ("NVIDIA L40", "l40"),
        ("NVIDIA L40S", None),
        ("NVIDIA L4", None),
        ("", None),
    ],
)
def test_names_as_drivers_give_them(driver: str, expected: str | None) -> None:
    found = [name for name in profiles() if load_hardware(name).matches(driver)]
    assert found == ([expected] if expected else [])


def test_whole_words_alone() -> None:
    hardware = load_hardware("h100")

    def known_as(*names: str) -> Hardware:
        return hardware.model_copy(update={"names": names})

    assert known_as("RTX 4090").matches("GeForce RTX-4090")
    assert not known_as("RTX 4090").matches("GeForce 4090 RTX")
    assert known_as("Nothing", "L40").matches("L40")
    assert not known_as().matches("NVIDIA H100")
