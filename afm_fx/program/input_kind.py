"""The names of what a program may take. Apart from what changes it, so that a command can offer them before torch is
there."""

from __future__ import annotations

from enum import StrEnum
from typing import NoReturn

from afm_fx.errors import UserError


class InputKind(StrEnum):
    """What a program takes: the model's own inputs, or ids and features apart."""

    ORIGINAL = "original"
    TYPED = "typed"

    @classmethod
    def _missing_(cls, value: object) -> NoReturn:
        raise UserError(f"inputs is one of {', '.join(cls)}, got {value!r}")
