"""A plan's digest: the same for plans that make the same program of the same model.

What counts is what a rewrite reads: each site's name, kind, shape, rank and tables, its factor's numbers and the hidden
units that stay. What a plan says *about* that (reasons, measured errors, the policy) does not,
so that a later release whose plans tell more computes the same digest, and neither does the order of anything but the
sites. The digest is SHA-256 over one line of canonical JSON and the tensors' bytes, little-endian, in the order of
their names.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

from torch import Tensor

from passes.drop_units import Units
from passes.factor import Factor

if TYPE_CHECKING:
    from afm_fx.plan import SitePlan

DIGEST_VERSION = 1


def plan_digest(sites: Iterable[SitePlan], tensors: Mapping[str, Tensor]) -> str:
    """The digest of sites and of what :func:`plan_tensors` gives, "sha256:" and 64 hexadecimal digits."""
    header = {
        "digest": DIGEST_VERSION,
        "sites": [[each.name, str(each.kind), list(each.shape), each.rank, list(each.tables)] for each in sites],
        "tensors": [
            [name, str(tensor.dtype).removeprefix("torch."), list(tensor.shape)]
            for name, tensor in sorted(tensors.items())
        ],
    }
    digest = hashlib.sha256(json.dumps(header, separators=(",", ":"), sort_keys=True).encode())
    for _, tensor in sorted(tensors.items()):
        digest.update(_little_endian(tensor))
    return f"sha256:{digest.hexdigest()}"


def factor_digest(factor: Factor) -> str:
    """The digest of one factor's numbers, 64 hexadecimal digits."""
    digest = hashlib.sha256()
    for name, tensor in sorted(plan_tensors({"": factor}, {}).items()):
        digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}".encode())
        digest.update(_little_endian(tensor))
    return digest.hexdigest()


def plan_tensors(factors: Mapping[str, Factor], units: Mapping[str, Units]) -> dict[str, Tensor]:
    """Every tensor of a plan by the name that it has in the plan's file."""
    tensors: dict[str, Tensor] = {}
    for name, factor in factors.items():
        parts = {
            "encoder": factor.encoder,
            "decoder": factor.decoder,
            "shift": factor.shift,
            "offset": factor.offset,
        }
        tensors.update({f"{name}/{part}": tensor for part, tensor in parts.items() if tensor is not None})
    for name, each in units.items():
        tensors[f"{name}/kept_units"], tensors[f"{name}/unit_constants"] = each.kept, each.constants
    return tensors


def _little_endian(tensor: Tensor) -> bytes:
    content = tensor.detach().cpu().numpy()
    return content.astype(content.dtype.newbyteorder("<"), copy=False).tobytes()
