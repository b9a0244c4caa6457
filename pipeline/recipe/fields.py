"""What the sections of a recipe share: kinds of values, and what a section is."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

Fraction = Annotated[float, Field(ge=0.0, lt=1.0, strict=True)]
PositiveFraction = Annotated[float, Field(gt=0.0, lt=1.0, strict=True)]
Count = Annotated[int, Field(gt=0, strict=True)]
Name = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9._-]*$")]
Text = Annotated[str, Field(min_length=1, strict=True)]
MemorySize = Annotated[str, Field(pattern=r"^[0-9]+(\.[0-9]+)?[KMG]i?B$", strict=True)]

Side = Literal["forget", "retain"]


class Section(BaseModel):
    """Base of every part of a recipe: unknown keys are refused, values do not change."""

    model_config = ConfigDict(extra="forbid", frozen=True)
