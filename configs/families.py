"""Model families: their options, and those that the entry points ``longtake.families`` name."""

from __future__ import annotations

import importlib
import itertools
import logging
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, get_args

from pydantic import BaseModel, ConfigDict, Field, create_model
from pydantic.fields import FieldInfo

from longtake.errors import ModelError, one_line

if TYPE_CHECKING:
    from typing_extensions import Self

logger = logging.getLogger(__name__)

GROUP = "longtake.families"
"""Group of the entry points, each of which names a :class:`ModelFamily`."""


class FamilyOptions(BaseModel):
    """Options of a model family, which become fields of every request.

    The default of each is None: it was not given, or the model of the request does not have it.
    Values are hashable.

    Attributes:
        discards: By option: the settings of an earlier video that another value of it discards,
            since they may not fit it.
        recorded: By option: the field after which version 0.1 recorded it in a request, and the
            value that stood for one that was not given. Empty for families that came later.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    discards: ClassVar[Mapping[str, Sequence[str]]] = {}
    recorded: ClassVar[Mapping[str, tuple[str, Any]]] = {}

    @classmethod
    def of(cls, request: BaseModel) -> Self:
        """The options in a request, or in a model's defaults."""
        return cls.model_construct(**{name: getattr(request, name) for name in cls.model_fields})


def holds_mapping(field: FieldInfo) -> bool:
    """Whether the values of a field are mappings, which have no form on a command line."""
    kinds = (field.annotation, *get_args(field.annotation))
    return any(isinstance(kind, type) and issubclass(kind, BaseModel) for kind in kinds)


@dataclass(frozen=True)
class ModelFamily:
    """What a model family consists of.

    ``module:name`` refers to an object whose module is imported on first use: diffusers is slow to
    import, and planning needs no torch.

    Attributes:
        name: Name of the family in lower case; that of its folder, if it is longtake's.
        pipeline_classes: Classes in ``model_index.json`` that it renders.
        options: Reference to the FamilyOptions of all its models. Requests are made of it, so its
            module imports nothing of longtake but what declares options: this one and
            ``configs.field_types``.
        inspect: Reference to the function ``(checkpoint, *, weights, autoencoder_only)`` that
            checks a checkpoint and returns its ModelSpec, in a module without torch.
        pipeline: Reference to the function ``(checkpoint, spec, codec, world, plan,
            on_component)`` that loads a VideoPipeline on one rank.
        codec: Reference to the function ``(checkpoint, spec, world, plan)`` that loads a VideoCodec
            on one rank.
        title: Name of the family as its authors write it; ``name`` if empty.
        skeleton: Reference to the function ``(checkpoint, spec)`` that builds a
            :class:`~longtake.pipelines.counting.skeleton.Skeleton`, on which costs are counted;
            empty if the family's specifications have costs.
        layouts: Reference to the tuple of
            :class:`~longtake.pipelines.checkpoints.layout.CheckpointLayout` in which files of its
            components come, in a module without torch; empty for diffusers' alone.
        folders: Reference to the tuple of
            :class:`~longtake.pipelines.checkpoints.folders.PublisherFolder` in which publishers
            release its models, in a module without torch; empty for diffusers' alone.
        package: Name and version of the package that it is installed with; None for longtake's own.
            Set by :func:`installed_families`.
    """

    name: str
    pipeline_classes: tuple[str, ...]
    options: str
    inspect: str
    pipeline: str
    codec: str
    title: str = ""
    skeleton: str = ""
    layouts: str = ""
    folders: str = ""
    package: tuple[str, str] | None = None

    @property
    def label(self) -> str:
        """The family's name in messages."""
        return self.title or self.name


def load_reference(reference: str) -> Any:
    """The object that ``module:name`` refers to."""
    module, _, name = reference.partition(":")
    return getattr(importlib.import_module(module), name)


@cache
def installed_families() -> Mapping[str, ModelFamily]:
    """The installed families by name.

    One that cannot be imported is left out, with a warning.

    Raises:
        ModelError: Two families have one name or claim one pipeline class.
    """
    points = {(each.name, each.value): each for each in entry_points(group=GROUP)}
    loaded = [_load(points[key]) for key in sorted(points)]
    families = [each for each in loaded if each is not None]
    for one, other in itertools.combinations(families, 2):
        claimed = sorted({*one.pipeline_classes} & {*other.pipeline_classes})
        if one.name == other.name or claimed:
            raise ModelError(
                f"{', '.join(claimed) or one.name} is claimed by two model families, "
                f"{one.label} ({one.inspect}) and {other.label} ({other.inspect}): uninstall one "
                "of them"
            )
    return {each.name: each for each in families}


def family_of(pipeline_class: str) -> ModelFamily | None:
    """The installed family that renders a pipeline class; None if there is none."""
    families = installed_families().values()
    return next((each for each in families if pipeline_class in each.pipeline_classes), None)


def merge_options(
    families: Iterable[ModelFamily], taken: Collection[str] = ()
) -> type[FamilyOptions]:
    """The options of all families as one class, whose descriptions name the families.

    Args:
        families: The families.
        taken: Names of longtake's own options.

    Raises:
        ModelError: Two families declare one option with different types, or a family declares one
            of longtake's own.
    """
    declaring: dict[str, list[ModelFamily]] = {}
    options = {family: _options_of(family) for family in families}
    for family, kind in options.items():
        for name, field in kind.model_fields.items():
            check_untaken(name, family, taken)
            others = declaring.setdefault(name, [])
            first = options[others[0]].model_fields[name] if others else field
            if (first.annotation, first.metadata) != (field.annotation, field.metadata):
                raise ModelError(
                    f"{name} is an option of two model families, {others[0].label} and "
                    f"{family.label}, with different types: uninstall one of them"
                )
            others.append(family)
    bases = tuple(dict.fromkeys(options.values())) or (FamilyOptions,)
    merged: type[FamilyOptions] = create_model(
        "MergedOptions",
        __base__=bases,
        __module__=__name__,
        **{name: _labelled(options[found[0]], name, found) for name, found in declaring.items()},
    )
    merged.discards = {name: fields for kind in bases for name, fields in kind.discards.items()}
    merged.recorded = {name: entry for kind in bases for name, entry in kind.recorded.items()}
    return merged


def check_untaken(name: str, family: ModelFamily, taken: Collection[str]) -> None:
    """Raise if an option of a family has the name of one of longtake's own.

    Raises:
        ModelError: It has.
    """
    if name in taken:
        raise ModelError(
            f"{name} of the model family {family.label} is an option of longtake itself: name it "
            "otherwise, or uninstall the family"
        )


def _labelled(kind: type[FamilyOptions], name: str, families: list[ModelFamily]) -> Any:
    """An option's annotation and field, with its families named in the description."""
    field = kind.model_fields[name]
    labels = " and ".join(family.label for family in families)
    description = f"{field.description or name}; {labels} only"
    annotated: Any = Annotated
    parts = (field.annotation, *field.metadata)
    kind_of_value = annotated[parts] if field.metadata else field.annotation
    return kind_of_value, Field(default=None, title=field.title, description=description)


def _load(point: EntryPoint) -> ModelFamily | None:
    """The family that an entry point names; None, with a warning, if it cannot be imported."""
    try:
        family = point.load()
        if not isinstance(family, ModelFamily):
            raise TypeError(f"{point.value} is no ModelFamily")
        _options_of(family)
        if point.dist is not None and not point.value.startswith("longtake."):
            family = replace(family, package=(point.dist.name, point.dist.version))
    except Exception as error:  # a family may raise anything
        logger.warning(
            "the model family %s (%s) is left out, since it cannot be imported: %s",
            point.name,
            point.value,
            one_line(error),
        )
        return None
    return family


def _options_of(family: ModelFamily) -> type[FamilyOptions]:
    """The options of a family, checked to be None by default."""
    options = load_reference(family.options)
    if not (isinstance(options, type) and issubclass(options, FamilyOptions)):
        raise TypeError(f"{family.options} is no subclass of FamilyOptions")
    for name, field in options.model_fields.items():
        if field.is_required() or field.default is not None:
            raise TypeError(f"{family.options} has {name} with a default other than None")
    return options
