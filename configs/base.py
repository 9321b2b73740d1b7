"""What all that can be asked for has in common."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    ValidationError,
    ValidationInfo,
    field_validator,
)

from longtake.errors import RequestError, one_line


def _in_utf8(path: Path) -> Path:
    """Paths are recorded in JSON."""
    try:
        str(path).encode()
    except UnicodeEncodeError as error:
        raise ValueError("must be a name in UTF-8: rename the file") from error
    return path


Dtype = Literal["float32", "bfloat16", "float16"]
"""A floating-point type, by torch's name."""

ELEMENT_BYTES: dict[Dtype, int] = {"float32": 4, "bfloat16": 2, "float16": 2}

NamedPath = Annotated[Path, AfterValidator(_in_utf8)]


def written_as(pattern: str, rule: str) -> AfterValidator:
    """Text of a form that is said in words: "must be ..."."""

    def checked(text: str) -> str:
        if re.fullmatch(pattern, text) is None:
            raise ValueError(f"must be {rule}")
        return text

    return AfterValidator(checked)


class StrictModel(BaseModel):
    """Fields that a user may set: frozen once they are, and no others are taken."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    def __init__(self, /, **values: Any) -> None:
        """Check the values.

        Raises:
            RequestError: a value that cannot be, or a field that there is not.
        """
        try:
            super().__init__(**values)
        except ValidationError as error:
            raise RequestError(one_line(error, type(self).model_fields)) from error

    # As pydantic marks its own: what it parses or finds in another object does not go through here,
    # so that each field's error is still told with the place where it stands.
    __init__.__pydantic_base_init__ = True  # type: ignore[attr-defined]

    @field_validator("*", mode="before")
    @classmethod
    def _no_switch_for_a_number(cls, value: Any, info: ValidationInfo) -> Any:
        """``true`` in JSON is no number, though Python would count with it."""
        listed = isinstance(value, list | tuple)
        if any(isinstance(each, bool) for each in value) if listed else isinstance(value, bool):
            field = cls.model_fields[str(info.field_name)]
            if "bool" not in str(field.annotation):
                raise ValueError("must not be true or false")
        return value
