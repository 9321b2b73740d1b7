"""Generates the pages that are not written by hand. mkdocs loads this file as a hook.

The reference of commands comes from their declarations, that of models from the presets, and the
costs of training from the planner; ``python docs/generated_pages.py [commands|models|training]``
prints one of them. CONTRIBUTING.md and CHANGELOG.md come from the root of the repository.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from longtake.cli.options import COMMANDS, Option
from longtake.configs.decoders import load_decoder
from longtake.configs.families import installed_families, load_reference
from longtake.configs.hardware import load_hardware
from longtake.configs.models import ModelDefaults, bundled, presets
from longtake.engine.planning.training.block_costs import METHODS, BlockCosts, Method, block_costs
from longtake.engine.planning.training.training_input import TrainingInput
from longtake.engine.tools.model_list import published_bytes
from longtake.files.sizes import format_bytes
from longtake.pipelines import registry
from longtake.pipelines.loading.checkpoint import Checkpoint
from longtake.pipelines.spec import ModelSpec

if TYPE_CHECKING:
    from mkdocs.config.defaults import MkDocsConfig
    from mkdocs.structure.files import Files
    from mkdocs.structure.pages import Page

ROOT = Path(__file__).parents[1]
COMMANDS_PAGE = "reference/commands.md"
MODELS_PAGE = "reference/models.md"
TRAINING_PAGE = "reference/training-costs.md"
COPIED_PAGES = {
    "development/contributing.md": ROOT / "CONTRIBUTING.md",
    "development/changelog.md": ROOT / "CHANGELOG.md",
}


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the generated pages to the site."""
    from mkdocs.structure.files import File

    files.append(File.generated(config, COMMANDS_PAGE, content=commands_page()))
    files.append(File.generated(config, MODELS_PAGE, content=models_page()))
    files.append(File.generated(config, TRAINING_PAGE, content=training_page()))
    for page, source in COPIED_PAGES.items():
        files.append(File.generated(config, page, content=source.read_text()))
    return files


def on_page_content(html: str, page: Page, **_: Any) -> str:
    """Drop the roles of Sphinx before names in docstrings: editors read them, Markdown does not."""
    return re.sub(r":(?:class|func|meth|mod):(?=<code>)", "", html)


def commands_page() -> str:
    """The reference in Markdown: a section and a table of options for each command."""
    sections = [_INTRODUCTION]
    for name, command in COMMANDS.items():
        sections.append(f"## longtake {name}\n\n{command.summary}")
        if command.options:
            rows = map(_row, command.options)
            sections.append(_table(("option", "value", "meaning"), rows))
    return "\n\n".join(sections) + "\n"


def models_page() -> str:
    """The presets, the options of each family, and the keys of longtake.yaml, in Markdown."""
    specs = {name: _spec(name) for name in (*bundled(), *presets())}
    parts = [
        _MODELS_INTRODUCTION.strip(),
        "## Presets",
        _table(_PRESET_COLUMNS, [_preset(*each) for each in specs.items()]),
        _PRESETS_LEGEND.strip(),
        "## Few-step presets",
        _FEW_STEP_INTRODUCTION.strip(),
        _table(("preset", "settings", "models"), _few_step_presets(specs)),
        "## Sizes for pictures",
        _table(("resolution", "width x height", "models"), _sizes(specs)),
        "## Negative prompts",
        _table(("default", "models"), _negative_prompts(specs)),
        "## Options of families",
        *_families(specs),
        "## Keys of longtake.yaml",
        _DEFAULTS_INTRODUCTION.strip(),
        _table(("key", "meaning"), [_key(name) for name in ModelDefaults.model_fields]),
    ]
    return "\n\n".join(parts) + "\n"


_DEFAULTS = ("video", "steps", "guidance", "shift", "fps")

_PRESET_COLUMNS = ("name", "takes", *_DEFAULTS, "GiB", "files", "license")

_MODELS_INTRODUCTION = """\
# Models

This page is generated from the presets in `configs/models/` and the installed model families. Any
folder or hub repository in diffusers layout renders, too, if a family has its pipeline class.
"""

_PRESETS_LEGEND = """\
"guidance" is `--guidance-scale` and, for two experts, `--guidance-scale-2`. It is embedded in
HunyuanVideo; for Wan it is classifier-free guidance, of two passes a step. GiB are all weights in
half precision; "files" is the size of the published ones, some of which are in float32.
"""

_FEW_STEP_INTRODUCTION = """\
Values of `--few-step`: the published settings of models and LoRAs that are distilled to a few
steps. See [few-step models](../guides/few-step.md).
"""

_DEFAULTS_INTRODUCTION = """\
A model's folder may hold a `longtake.yaml` with the defaults of its requests. The options of the
model's family are keys, too.
"""


def _table(headings: Iterable[str], rows: Iterable[str]) -> str:
    headings = list(headings)
    lines = [f"| {' | '.join(headings)} |", "|---" * len(headings) + "|", *rows]
    return "\n".join(lines)


def _cells(*values: object) -> str:
    return f"| {' | '.join(map(str, values))} |"


def _spec(name: str) -> ModelSpec:
    return registry.inspect(Checkpoint.open(name, configs_only=True), weights=False)


def _preset(name: str, spec: ModelSpec) -> str:
    """A row of the table of presets."""
    defaults, costs = spec.defaults, spec.costs
    takes = [
        f"`{picture}`{'' if needed == 'required' else ' if given'}"
        for picture, needed in spec.pictures.items()
    ]
    second = getattr(defaults, "guidance_scale_2", None)
    scales = [each for each in (defaults.guidance_scale, second) if each is not None]
    gib = 2 * (costs.transformer_parameters + sum(costs.other_parameters.values())) / 2**30
    return _cells(
        f"`{name}`",
        ", ".join(["text", *takes]),
        f"{defaults.width} x {defaults.height} x {defaults.num_frames}",
        defaults.num_inference_steps,
        ", ".join(f"{scale:g}" for scale in scales),
        f"{defaults.flow_shift or spec.flow_shift:g}",
        f"{defaults.fps:g}",
        f"{gib:.1f}" if gib >= 0.1 else f"{gib:.2f}",
        format_bytes(published_bytes(spec)),
        defaults.license or "apache-2.0",
    )


def _sizes(specs: dict[str, ModelSpec]) -> list[str]:
    """Rows of the sizes from which a picture's shape chooses."""
    models: dict[tuple[str, str], list[str]] = {}
    for name, spec in specs.items():
        for resolution, sizes in spec.defaults.sizes.items():
            listed = ", ".join(f"{width} x {height}" for height, width in sizes)
            models.setdefault((resolution, listed), []).append(f"`{name}`")
    return [_cells(*each, ", ".join(names)) for each, names in models.items()]


def _few_step_presets(specs: dict[str, ModelSpec]) -> list[str]:
    models: dict[tuple[str, str], list[str]] = {}
    for name, spec in specs.items():
        for preset, settings in spec.few_step_presets.items():
            models.setdefault((preset, str(settings)), []).append(f"`{name}`")
    return [
        _cells(f"`{preset}`", f"`{settings}`", ", ".join(names))
        for (preset, settings), names in models.items()
    ]


def _negative_prompts(specs: dict[str, ModelSpec]) -> list[str]:
    models: dict[str, list[str]] = {}
    for name, spec in specs.items():
        if prompt := spec.defaults.negative_prompt:
            models.setdefault(prompt, []).append(f"`{name}`")
    return [_cells(prompt, ", ".join(names)) for prompt, names in models.items()]


def _families(specs: dict[str, ModelSpec]) -> list[str]:
    """A section for each installed family: pipeline classes, and options by model."""
    parts = []
    for family in installed_families().values():
        own = {name: spec for name, spec in specs.items() if spec.family == family.label}
        classes = ", ".join(f"`{each}`" for each in family.pipeline_classes)
        rows = []
        for option, field in load_reference(family.options).model_fields.items():
            taking = [f"`{n}`" for n, spec in own.items() if option in spec.options.model_fields]
            models = "all" if len(taking) == len(own) else ", ".join(taking)
            rows.append(_cells(f"`{option}`", models, field.description))
        parts += [f"### {family.label}", f"Pipeline classes: {classes}."]
        parts.append(_table(("option", "models", "meaning"), rows))
        if further := _further_keys(own.values()):
            parts.append(f"Further keys of `longtake.yaml`: {', '.join(further)}.")
    return parts


def _further_keys(specs: Iterable[ModelSpec]) -> list[str]:
    """Keys of longtake.yaml that are neither common nor options, of the models of one family."""
    keys = {key for spec in specs for key in type(spec.defaults).model_fields}
    options = {option for spec in specs for option in spec.options.model_fields}
    return [f"`{key}`" for key in sorted(keys - options - ModelDefaults.model_fields.keys())]


def _key(name: str) -> str:
    return _cells(f"`{name}`", ModelDefaults.model_fields[name].description or "as in a request")


def training_page() -> str:
    """What a block sends and holds under each parallelism, in symbols and in bytes, in Markdown."""
    sent = [
        _cells(m.name, m.weights_sent, m.weights_volume, m.activations_sent, m.activations_volume)
        for m in METHODS
    ]
    held = [_cells(method.name, *method.held) for method in METHODS]
    parts = [
        _TRAINING_INTRODUCTION.strip(),
        "## What a block sends",
        _table(("method", "weights: operations", "elements", "activations", "elements"), sent),
        _SENT_LEGEND.strip(),
        "## What a rank holds of a block",
        _table(("method", "weights", "gradients", "optimizer", "activations"), held),
        _HELD_LEGEND.strip(),
        "## In bytes",
        _BYTES_INTRODUCTION.strip(),
        *(part for model in ("llama2-7b", "llama3-8b") for part in _block_bytes(model)),
    ]
    return "\n\n".join(parts) + "\n"


def _block_bytes(model: str) -> list[str]:
    """A section with the bytes of one block of a decoder, in GB."""
    training = TrainingInput(
        config=load_decoder(model), hardware=load_hardware("a800"), sequence=65536, batch=8
    )
    columns = ("method", "weights sent", "activations sent", *_HELD_PARTS)

    def row(method: Method) -> str:
        costs: BlockCosts = block_costs(training, method.layout(8, 2))
        values = (costs.weights_sent, costs.activations_sent)
        held = (getattr(costs, part) for part in _HELD_PARTS)
        return _cells(method.name, *(f"{value / 1e9:.3f}" for value in (*values, *held)))

    return [f"### {model}", _table(columns, map(row, METHODS))]


_HELD_PARTS = ("weights", "gradients", "optimizer", "activations")

_TRAINING_INTRODUCTION = """\
# What training costs

This page is generated by the training planner (`engine/planning/training/block_costs.py`). It has
tables 2 and 3 of the USP paper (arXiv 2405.07719) for one transformer block and one step without
recomputation. Tests compare the symbols with the exchanges' arithmetic, to the byte.

Legend: `P` parameters of the block, `A` activations that backward needs of all tokens, `T` tokens
of the batch times width, `g` KV heads over query heads (1 for multi-head attention; with more
Ulysses ranks than KV heads, Ulysses ranks over query heads), `N` ranks, `U` and `R` the Ulysses and
ring degree of USP, `N = U R`.
"""

_SENT_LEGEND = """\
Elements are those that one rank sends. Gradients have 4 bytes each, weights and activations those
of their dtype. DP, ZeRO and SP reduce the same gradients: a rank of a sequence has seen a part of
the tokens only.

- **Ulysses**: q, k and v go out in one all-to-all and the output returns in one; backward does the
  same with gradients. A rank sends `(1 + 2 g) T/N` and `T/N` each way, of which it keeps 1/N. It is
  the only volume that falls with the square of N.
- **Ring**: K and V pass N - 1 times, forward and again backward, and the gradients of each block go
  straight to its owner. These are whole blocks; with a causal mask in zigzag 3/4 of them are sent.
- **TP** has two all-reduces forward and two backward. **TP-sp** splits each into a reduce-scatter
  and an all-gather, and gathers the two inputs once more for the gradients of weights.

The paper's table has `8/N`, `4`, `8` and `10` times T for Ulysses, ring, TP and TP-sp with
multi-head attention, leaves out (N-1)/N, and counts 12 and 18 d² for the gradients of DP and
ZeRO-3, where this table has `2 P` and `3 P`. Only the ring differs: 6, since K and V travel in
backward again beside their gradients.

Pipeline stages send nothing inside a block, and T elements each way at a border of stages.
"""

_HELD_LEGEND = """\
Weights have 2 bytes a parameter in half precision, gradients 4, optimizer states 12 (Adam's moments
and float32 weights). `a A` is what TP without sequence parallelism holds: the norms whole, the rest
divided by N. Sequence parallelism divides activations alone: it needs ZeRO for the rest. With
Ulysses, the exchanged output is held beside that of the attention, `T/N` more.
"""

_BYTES_INTRODUCTION = """\
GB of the busiest rank for one block in bfloat16: 8 sequences of 65536 tokens, N = 8, USP with U = 4
and R = 2.
"""

_INTRODUCTION = """\
# Commands and options

This page is generated from the declarations that the command line itself is built from.
`longtake COMMAND --help` prints the same. An option that is left out takes its default, or, where
none is given here, the model's own value.
"""


def _row(option: Option) -> str:
    """A row of a command's table."""
    spelling = ", ".join(f"`{each}`" for each in option.flags or (option.metavar,))
    if option.positional:
        value = "positional"
    else:
        value = "flag" if option.num_values == 0 else f"`{option.metavar}`"
    meaning = f"{option.help} {option.hint}".strip()
    return f"| {spelling} | {value} | {meaning.replace('|', '&#124;').replace('<', '&lt;')} |"


if __name__ == "__main__":
    made = {"models": models_page, "training": training_page}
    print(made.get("".join(sys.argv[1:]), commands_page)())
