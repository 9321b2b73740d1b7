"""The base of the request fields that only one model family has."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, get_args

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from longtake.configs.base import StrictModel

if TYPE_CHECKING:
    from typing_extensions import Self


def holds_mapping(field: FieldInfo) -> bool:
    """Whether the values of a field are mappings, which have no form on a command line."""
    kinds = (field.annotation, *get_args(field.annotation))
    return any(isinstance(kind, type) and issubclass(kind, BaseModel) for kind in kinds)


class FamilyOptions(StrictModel):
    """Options of a model family, which become fields of every request.

    The default of each is None: it was not given, or the model of the request does not have it.
    Values are hashable.

    Attributes:
        discards: By option: the settings of an earlier video that another value of it discards,
            since they may not fit it.
        recorded: By option: the field after which version 0.1 recorded it in a request, and the
            value that stood for one that was not given. Empty for families that came later.
    """

    discards: ClassVar[Mapping[str, Sequence[str]]] = {}
    recorded: ClassVar[Mapping[str, tuple[str, Any]]] = {}

    @classmethod
    def of(cls, request: BaseModel) -> Self:
        """The options in a request, or in a model's defaults."""
        return cls.model_construct(**{name: getattr(request, name) for name in cls.model_fields})
