"""What all that can be asked for has in common."""

from __future__ import annotations

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


class Declared(BaseModel):
    """Fields that a user may set: frozen once they are, and no others are taken."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    @field_validator("*", mode="before")
    @classmethod
    def _no_switch_for_a_number(cls, value: Any, info: ValidationInfo) -> Any:
        """``yes`` and ``true`` in YAML are no numbers, though Python would count with them."""
        field = cls.model_fields[str(info.field_name)]
        values = value if isinstance(value, list | tuple) else [value]
        if any(isinstance(each, bool) for each in values) and "bool" not in str(field.annotation):
            raise ValueError("must not be true or false")
        return value
