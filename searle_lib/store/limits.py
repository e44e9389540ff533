"""Limits that the settings of several stages share, as types. Pydantic refuses a value outside of them."""

from typing import Annotated

from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt

__all__ = ["NonNegativeFloat", "NonNegativeInt", "PositiveFloat", "PositiveInt", "Seed", "Share"]

Share = Annotated[float, Field(ge=0, lt=1)]  # dropout, or the decay of a moving average
Seed = Annotated[int, Field(ge=0, lt=2**63)]
