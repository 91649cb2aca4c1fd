"""The names of bases. Apart from what makes them, so that a command can offer them before torch is there."""

from __future__ import annotations

from enum import StrEnum

from afm_fx.errors import PolicyError


class BasisKind(StrEnum):
    """Where a basis comes from. ``MEASURED`` is, for each site, the one with the smallest measured logit error."""

    AFM = "afm"
    WEIGHT_SVD = "weight_svd"
    CONSUMER = "consumer"
    GRADIENT = "gradient"
    GRADIENT_AND_AFM = "gradient+afm"
    GRADIENT_AND_CONSUMER = "gradient+consumer"
    MEASURED = "measured"

    @classmethod
    def _missing_(cls, value: object) -> BasisKind:
        raise PolicyError(f"there is no basis '{value}'; choose one of {[kind.value for kind in cls]}")
