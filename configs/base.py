"""The base of all declared configurations."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    ValidationInfo,
    field_validator,
)

from longtake.errors import RequestError, one_line


def _check_utf8(path: Path) -> Path:
    """Reject names that JSON metadata cannot record."""
    try:
        str(path).encode()
    except UnicodeEncodeError as error:
        raise ValueError("must be a name in UTF-8: rename the file") from error
    return path


Dtype = Literal["float32", "bfloat16", "float16"]
"""A floating-point type, by torch's name."""

ELEMENT_BYTES: dict[Dtype, int] = {"float32": 4, "bfloat16": 2, "float16": 2}

NamedPath = Annotated[Path, AfterValidator(_check_utf8)]

Seconds = Annotated[float, Field(gt=0, le=10_000_000, allow_inf_nan=False)]


class StrictModel(BaseModel):
    """A frozen pydantic model that rejects unknown fields and raises RequestError."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    def __init__(self, /, **values: Any) -> None:
        """Validate the values.

        Raises:
            RequestError: A value is invalid, or a field is unknown.
        """
        try:
            super().__init__(**values)
        except ValidationError as error:
            raise RequestError(one_line(error, type(self).model_fields)) from error

    # Pydantic's marker for its own __init__: nested models are then validated without calling this
    # one, so that an error in a nested field is reported with its full location.
    __init__.__pydantic_base_init__ = True  # type: ignore[attr-defined]

    @field_validator("*", mode="before")
    @classmethod
    def _reject_bool_as_number(cls, value: Any, info: ValidationInfo) -> Any:
        """Reject ``true`` for a number: in Python, bool is a subclass of int."""
        values = value if isinstance(value, list | tuple) else [value]
        if any(isinstance(each, bool) for each in values):
            field = cls.model_fields[str(info.field_name)]
            if "bool" not in str(field.annotation):
                raise ValueError("must not be true or false")
        return value
