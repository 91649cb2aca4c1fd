"""Plans: a rank and a factor per site, as a file that another process can apply."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields
from typing import Any

import msgspec
from torch import Tensor

from afm_fx.calibration import Coverage
from afm_fx.io import complete, load_tensors, render_table, save_tensors
from passes.codes import Factor
from passes.sites import SiteKind, Units

KIND = "plan"
VERSION = 5
DIGEST_VERSION = 1


@dataclass(frozen=True)
class Evidence:
    """One measured quantity of the program that a plan makes.

    Attributes:
        quantity: what was measured, with its unit.
        limit: what it may be at most.
        measured: what it is.
        predicted: what was predicted before it was measured, None where nothing was.
        bound: upper confidence bound (one-sided), None where the quantity has none.
        confidence: of the bound, for example 0.95.
        rows: rows that it was measured on; for a latency, rows of a batch.
        tried: how many programs the search measured on these rows.
        conditions: how it was measured, may be empty.
    """

    quantity: str
    limit: float
    measured: float
    predicted: float | None = None
    bound: float | None = None
    confidence: float | None = None
    rows: int = 0
    tried: int = 1
    conditions: str = ""

    def sentence(self) -> str:
        """The evidence as a line of text."""
        text = f"{self.quantity}: measured {self.measured:.4g}, at most {self.limit:.4g} allowed"
        if self.predicted is not None:
            text += f", {self.predicted:.4g} predicted"
        if self.bound is not None and self.confidence is not None:
            text += f", at most {self.bound:.4g} with {self.confidence:.0%} confidence"
        text += f" (rows: {self.rows:,}, programs measured: {self.tried}"
        return text + (f"; {self.conditions})" if self.conditions else ")")


@dataclass(frozen=True)
class SitePlan:
    """What is done with one site.

    Attributes:
        name: the site's name.
        kind: embedding or linear.
        shape: the weight's shape, [V, n] of a table or [n, inputs] of a Linear.
        rank: code width, 0 where one constant row stands for all, None where the site is left as it is.
        reason: why.
        kept_energy: share of the features' energy about the centre that the code keeps, on the calibration rows.
        predicted_error: mean over calibration rows of the squared error of the features; 0 where left alone.
        basis: where the site's basis comes from; empty where left alone.
        tables: names of the tables under one joint code, empty for a plain site.
        logit_errors: root mean squared logit error on held-out rows with this site alone factored, by the basis that
            was tried at this rank; empty where nothing was measured.
        coverage: what calibration saw of a table's rows; None for a Linear, and where they were not counted.
        rows: calibration rows that the basis and its error rest on; 0 where left alone.
    """

    name: str
    kind: SiteKind
    shape: tuple[int, int]
    rank: int | None
    reason: str
    kept_energy: float
    predicted_error: float
    basis: str = ""
    tables: tuple[str, ...] = ()
    logit_errors: Mapping[str, float] = field(default_factory=dict)
    coverage: Coverage | None = None
    rows: int = 0

    def basis_text(self) -> str:
        """The site's basis, and how much larger the best other one's logit error was."""
        if self.rank == 0:
            return "constant row"
        others = [error for name, error in self.logit_errors.items() if name != self.basis]
        own = self.logit_errors.get(self.basis, 0.0)
        return f"{self.basis} (+{min(others) / own - 1:.0%})" if others and own > 0 else self.basis

    @property
    def width(self) -> int:
        """Number n of features."""
        return self.shape[1] if self.kind is SiteKind.EMBEDDING else self.shape[0]


@dataclass(frozen=True)
class Plan:
    """Ranks and factors for the sites of one model.

    Attributes:
        sites: one entry per site that could be factored, in graph order.
        refused: reason by site name, for the sites that could not.
        factors: by site name, for the sites with a rank.
        policy: the policy that chose, as JSON.
        basis: where the bases come from; "measured" where each site has its own.
        parameters_before: parameters of the program.
        parameters_after: parameters of the program once the plan is applied.
        warnings: what a user should know.
        units: hidden units that stay, by name of the Linear that makes them; the others are constant on real rows.
        logit_error: root mean squared logit error of the whole plan on held-out rows; None where nothing was measured.
        predicted_logit_error: the same as the sites' own errors add up to.
        evidence: what the policy measured on the program that the plan makes.
    """

    sites: tuple[SitePlan, ...]
    factors: Mapping[str, Factor]
    refused: Mapping[str, str] = field(default_factory=dict)
    policy: Mapping[str, Any] = field(default_factory=dict)
    basis: str = "afm"
    parameters_before: int = 0
    parameters_after: int = 0
    warnings: tuple[str, ...] = ()
    units: Mapping[str, Units] = field(default_factory=dict)
    logit_error: float | None = None
    predicted_logit_error: float | None = None
    evidence: tuple[Evidence, ...] = ()

    def table(self) -> str:
        """The plan as text, one line per site."""
        measured = any(site.logit_errors for site in self.sites)
        rows = []
        for site in self.sites:
            shape = "x".join(map(str, site.shape))
            if site.rank is None:
                rows.append((site.name, str(site.kind), shape, "as it is", "", "", "", site.reason))
                continue
            error = f"{site.logit_errors[site.basis]:.2g}" if measured else f"{site.predicted_error:.3g}"
            reason = "" if measured else site.reason
            energy = f"{site.kept_energy:.2%}"
            rows.append((site.name, str(site.kind), shape, str(site.rank), site.basis_text(), energy, error, reason))
        rows += [(name, "", "", "refused", "", "", "", reason) for name, reason in self.refused.items()]
        error = "logit error" if measured else "predicted error"
        columns = ("site", "kind", "shape", "rank", "basis", "energy kept", error, "reason")
        share = self.parameters_after / self.parameters_before if self.parameters_before else 1.0
        title = f"plan: {self.parameters_before:,} -> {self.parameters_after:,} parameters ({share:.1%})"
        text = render_table(title, columns, rows, left=2, text=("basis", "reason"))
        return "\n".join([text, *self._notes()])

    def _notes(self) -> Iterator[str]:
        rests = [(site.rows, site.name) for site in self.sites if site.rows]
        if rests:
            fewest, thinnest = min(rests)
            yield f"bases rest on {fewest:,} calibration rows or more (fewest: {thinnest})"
        known = [(site.coverage.expected_unseen, site.name, site) for site in self.sites if site.coverage is not None]
        share, name, least = max(known, default=(0.0, "", None))
        if share > 0 and least is not None and least.coverage is not None:
            yield f"the table that calibration knows least, {name}: {least.coverage.describe(least.shape[0])}"
        for name, units in self.units.items():
            total = units.constants.shape[0]
            yield f"{name}: {len(units.dropped)} of {total} units are constant on the calibration rows and left out"
        if self.logit_error is not None and self.predicted_logit_error is not None:
            yield (
                f"root mean squared logit error on held-out rows: {self.logit_error:.4f} "
                f"(the sites' own errors add up to {self.predicted_logit_error:.4f})"
            )
        yield from (each.sentence() for each in self.evidence)

    @property
    def digest(self) -> str:
        """The same for plans that make the same program of the same model, "sha256:" and 64 hexadecimal digits: the key
        of a compile cache, say.

        What counts is what a rewrite reads: each site's name, kind, shape, rank and tables, its factor's numbers and
        the hidden units that stay. What a plan says *about* that (reasons, measured errors, the policy) does not, so
        that a later release whose plans tell more computes the same digest, and neither does the order of anything but
        the sites. It is SHA-256 over one line of canonical JSON and the tensors' bytes, little-endian, in the order of
        their names.
        """
        tensors = sorted(self._tensors().items())
        header = {
            "digest": DIGEST_VERSION,
            "sites": [[site.name, site.kind, site.shape, site.rank, site.tables] for site in self.sites],
            "tensors": [[name, str(each.dtype).removeprefix("torch."), list(each.shape)] for name, each in tensors],
        }
        digest = hashlib.sha256(json.dumps(header, separators=(",", ":"), sort_keys=True).encode())
        for _, tensor in tensors:
            content = tensor.detach().cpu().numpy()
            digest.update(content.astype(content.dtype.newbyteorder("<"), copy=False).tobytes())
        return f"sha256:{digest.hexdigest()}"

    def _tensors(self) -> dict[str, Tensor]:
        """Every tensor by the name that it has in the plan's file."""
        tensors = {
            f"{name}/{part}": tensor
            for name, factor in self.factors.items()
            for part, tensor in factor.tensors().items()
        }
        for name, units in self.units.items():
            tensors[f"{name}/kept_units"], tensors[f"{name}/unit_constants"] = units.kept, units.constants
        return tensors

    def save(self, path: str | os.PathLike[str], *, force: bool = False) -> None:
        """Writes the plan as safetensors.

        Raises:
            OutputExistsError: the path exists and ``force`` is not set.
        """
        described = {each.name: getattr(self, each.name) for each in fields(self) if each.name != "factors"}
        header = msgspec.to_builtins({**described, "units": list(self.units)})
        save_tensors(path, KIND, VERSION, header, self._tensors(), force=force)

    @staticmethod
    def load(path: str | os.PathLike[str]) -> Plan:
        """Reads a plan.

        Raises:
            FileFormatError: the file is missing, damaged or of another kind or version.
        """
        header, tensors = load_tensors(path, KIND, VERSION)
        with complete(path, KIND):
            sites = msgspec.convert(header["sites"], tuple[SitePlan, ...])
            units = {
                name: Units(tensors[f"{name}/kept_units"], tensors[f"{name}/unit_constants"])
                for name in header["units"]
            }
            factors = {
                site.name: Factor(
                    tensors[f"{site.name}/encoder"],
                    tensors[f"{site.name}/decoder"],
                    tensors.get(f"{site.name}/shift"),
                    tensors.get(f"{site.name}/offset"),
                )
                for site in sites
                if site.rank is not None
            }
            for site in sites:
                if site.rank is not None:
                    _check_shapes(site, factors[site.name])
            made: dict[str, Any] = {
                "sites": sites,
                "factors": factors,
                "units": units,
                "warnings": tuple(header["warnings"]),
                "evidence": msgspec.convert(header["evidence"], tuple[Evidence, ...]),
            }
            return Plan(**made, **{each.name: header[each.name] for each in fields(Plan) if each.name not in made})


def _check_shapes(site: SitePlan, factor: Factor) -> None:
    """Checks that a factor's tensors have the rank and width that the site says."""
    rank, width = site.rank, site.width
    wanted = {"encoder": (rank, width), "decoder": (width, rank), "shift": (rank,), "offset": (width,)}
    for name, tensor in factor.tensors().items():
        if tuple(tensor.shape) != wanted[name]:
            raise ValueError(
                f"the {name} of site '{site.name}' is {list(tensor.shape)}, its rank asks for {list(wanted[name])}"
            )
