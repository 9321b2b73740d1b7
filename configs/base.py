"""What all that can be asked for has in common."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict, ValidationInfo, field_validator


def _in_utf8(path: Path) -> Path:
    """Paths are recorded in JSON."""
    try:
        str(path).encode()
    except UnicodeEncodeError as error:
        raise ValueError("must be a name in UTF-8: rename the file") from error
    return path


NamedPath = Annotated[Path, AfterValidator(_in_utf8)]


def written_as(pattern: str, rule: str) -> AfterValidator:
    """Text of a form that is said in words: "must be ..."."""

    def checked(text: str) -> str:
        if re.fullmatch(pattern, text) is None:
            raise ValueError(f"must be {rule}")
        return text

    return AfterValidator(checked)


class Declared(BaseModel):
    """Fields that a user may set: frozen once they are, and no others are taken."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    @field_validator("*", mode="before")
    @classmethod
    def _no_switch_for_a_number(cls, value: Any, info: ValidationInfo) -> Any:
        """``true`` in JSON is no number, though Python would count with it."""
        values = value if isinstance(value, list | tuple) else (value,)
        if True in values or False in values:  # 1 and 0 are equal to them
            field = cls.model_fields[str(info.field_name)]
            switch = any(isinstance(each, bool) for each in values)
            if switch and "bool" not in str(field.annotation):
                raise ValueError("must not be true or false")
        return value
