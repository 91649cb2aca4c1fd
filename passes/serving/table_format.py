"""The names of table formats. Apart from what stores tables, so that a command can offer them before torch is there."""

from __future__ import annotations

from enum import StrEnum


class TableFormat(StrEnum):
    """How the numbers of a table are stored."""

    FLOAT16 = "float16"
    INT8 = "int8"
