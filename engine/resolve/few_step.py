"""Fills in the settings of a few-step model: a preset's, or those that files name."""

from __future__ import annotations

from longtake.configs.fields.few_step import FILE, NONE, FewStep, common_settings
from longtake.configs.request import MergedOptions, Rendering, ResolvedRequest
from longtake.engine.loras.matching import LoraMatcher
from longtake.errors import RequestError
from longtake.pipelines.loading.checkpoint import Checkpoint
from longtake.pipelines.spec import ModelSpec


def with_few_step(request: Rendering, spec: ModelSpec, of_file: FewStep | None) -> Rendering:
    """The request with the few-step settings that it asks for, and with the name that is recorded.

    What the request gives itself stays. A preset replaces the file's settings as a whole.

    Args:
        request: The request.
        spec: The model's specification, which has the presets.
        of_file: Settings that the files of weights and LoRAs name; None if they name none.

    Raises:
        RequestError: There is no such preset, or a setting is not an option of the model.
    """
    if isinstance(request, ResolvedRequest):  # it holds them, whatever presets are now
        return request
    name = request.few_step or (None if of_file is None else FILE)
    if name in (None, NONE):
        return request
    settings = of_file if name == FILE else spec.few_step_presets.get(name)
    if settings is None:
        raise RequestError(_unknown(name, spec))
    for option in MergedOptions.model_fields:
        value = getattr(settings, option)
        if value is not None and option not in spec.options.model_fields:
            raise RequestError(
                f"few_step={name} sets {option}={value}, which is not an option of "
                f"{spec.model or 'this model'}: pass few_step={NONE}"
            )
    return settings.fill(request).model_copy(update={"few_step": name})


def few_step_of_files(
    request: Rendering, checkpoint: Checkpoint, loras: LoraMatcher
) -> FewStep | None:
    """The few-step settings that the files of weights and LoRAs name; None if they name none, or
    the request names others.

    Args:
        request: The request.
        checkpoint: The model's files.
        loras: Finds the request's LoRAs.

    Raises:
        ModelError, RequestError: They cannot be read, or differ.
    """
    if request.few_step not in (None, FILE) or isinstance(request, ResolvedRequest):
        return None
    parts = [
        (component, FewStep.from_metadata(part.headers.metadata, part.path))
        for component, part in checkpoint.parts.items()
    ]
    return common_settings([*parts, *loras.few_step(request)])


def _unknown(name: str, spec: ModelSpec) -> str:
    if name == FILE:
        return f"few_step={FILE}, and no file names settings: leave it out, or name a preset"
    whose, presets = spec.model or "this model", ", ".join(spec.few_step_presets)
    if not presets:
        return f"few_step={name} with {whose}, which has no few-step presets: leave it out"
    return f"few_step={name} is not a few-step preset of {whose}: try {presets}, or {NONE}"
