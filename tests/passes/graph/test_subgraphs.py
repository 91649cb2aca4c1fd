"""Branches and loops: what is used inside them stays as it is and is reported, the rest of the model is rewritten."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch._higher_order_ops.scan import scan
from torch._higher_order_ops.while_loop import while_loop

import afm_fx
from passes.laws.verdicts import Fate
from passes.sites.sites import SiteKind, find_sites

ROWS, WIDTH = 11, 6


class Base(nn.Module):
    """Two tables and three Linears; ``branch`` is what a subclass does in a graph of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.inside, self.outside = nn.Embedding(ROWS, WIDTH), nn.Embedding(ROWS, WIDTH)
        self.hidden, self.last, self.gate = nn.Linear(WIDTH, 8), nn.Linear(8, 3), nn.Linear(WIDTH, WIDTH)

    def branch(self, ids: Tensor, features: Tensor) -> Tensor:
        """[batch, WIDTH] from the ids [batch] and the features [batch, WIDTH] of the table outside."""
        raise NotImplementedError

    def forward(self, ids: Tensor) -> Tensor:
        features = self.outside(ids)
        return self.last((self.hidden(self.branch(ids, features)) + self.hidden(features)).relu())


class LookupInCond(Base):
    def branch(self, ids: Tensor, features: Tensor) -> Tensor:
        branches = (lambda i: self.inside(i) + 1, lambda i: self.inside(i) * 2)
        return torch.cond(ids.sum() > 40, *branches, (ids,))


class LinearInCond(Base):
    def branch(self, ids: Tensor, features: Tensor) -> Tensor:
        branches = (lambda x: self.gate(x) + 1, lambda x: x.sin())
        return torch.cond(ids.sum() > 40, *branches, (self.inside(ids),))


class LookupInCondAndOutside(LookupInCond):
    def branch(self, ids: Tensor, features: Tensor) -> Tensor:
        return super().branch(ids, features) + self.inside(ids)


class LookupInNestedCond(Base):
    def branch(self, ids: Tensor, features: Tensor) -> Tensor:
        def often(i: Tensor) -> Tensor:
            return torch.cond(i.max() > 5, lambda j: self.inside(j) * 3, lambda j: self.inside(j) + 1, (i,))

        return torch.cond(ids.sum() > 40, often, lambda i: self.inside(i) * 2, (ids,))


class LookupInWhileLoop(Base):
    def branch(self, ids: Tensor, features: Tensor) -> Tensor:
        start = torch.zeros((), dtype=torch.int64)
        _, result = while_loop(lambda i, _: i < 3, lambda i, x: (i + 1, x + self.inside(ids)), (start, features))
        return result


class LookupInScan(Base):
    def branch(self, ids: Tensor, features: Tensor) -> Tensor:
        def step(carry: Tensor, each: Tensor) -> tuple[Tensor, Tensor]:
            found = carry * 0.5 + self.inside(each)
            return found, found + 0

        _, steps = scan(step, features, ids.unsqueeze(0).expand(3, -1))
        return steps.sum(0)


REFUSED: list[tuple[type[Base], str, SiteKind, str]] = [
    (LookupInCond, "inside", SiteKind.EMBEDDING, "cond"),
    (LookupInCondAndOutside, "inside", SiteKind.EMBEDDING, "cond"),
    (LookupInNestedCond, "inside", SiteKind.EMBEDDING, "cond"),
    (LookupInWhileLoop, "inside", SiteKind.EMBEDDING, "while_loop"),
    (LookupInScan, "inside", SiteKind.EMBEDDING, "scan"),
    (LinearInCond, "gate", SiteKind.LINEAR, "cond"),
]

pytestmark = pytest.mark.parametrize(("model", "name", "kind", "operator"), REFUSED)


def ids(rows: int) -> Tensor:
    return torch.randint(0, ROWS, (rows,))


def test_what_is_used_inside_is_a_refused_site(model: type[Base], name: str, kind: SiteKind, operator: str) -> None:
    module = model().eval()
    program = afm_fx.capture(module, ids(6))
    for rows in (2, 7, 13):
        batch = ids(rows)
        assert torch.equal(program.run(batch), module(batch))
    sites = {site.name: site for site in find_sites(program.graph_module)}
    assert (sites[name].kind, sites[name].width) == (kind, WIDTH)
    thing = "table" if kind is SiteKind.EMBEDDING else "weight"
    refusal = f"the {thing} is used inside {operator} ('{operator}'), and branches and loops stay as they are"
    assert sites[name].refusal == refusal
    chains = [chain.verdict for chain in afm_fx.explain(program).chains if chain.site.name == name]
    assert [(verdict.fate, verdict.reason) for verdict in chains] == [(Fate.REFUSED, refusal)]


def test_the_rest_is_rewritten_and_at_full_rank_nothing_changes(
    model: type[Base], name: str, kind: SiteKind, operator: str
) -> None:
    program = afm_fx.capture(model().eval(), ids(6)).to(torch.float64)
    verdicts = [chain.verdict for chain in afm_fx.explain(program).chains]
    into = [(verdict.fate, verdict.reason) for verdict in verdicts if verdict.operator == operator]
    fed = model in (LookupInWhileLoop, LookupInScan, LinearInCond)
    reason = "it is a branch or a loop, and what runs inside takes the features themselves"
    assert into == [(Fate.RESTORED, reason)] * fed
    compressed = afm_fx.compress(program, [ids(64) for _ in range(3)], afm_fx.FullRank(), pack=False)
    assert "outside" in compressed.plan.factors
    assert name in compressed.plan.refused
    assert compressed.program.parameter_count() == compressed.plan.parameters_after
    for rows in (2, 7, 13):
        batch = ids(rows)
        torch.testing.assert_close(compressed.program.run(batch), program.run(batch), rtol=1e-10, atol=1e-10)


def test_in_float64_the_program_is_the_model_in_float64(
    model: type[Base], name: str, kind: SiteKind, operator: str
) -> None:
    module = model().eval()
    program = afm_fx.capture(module, ids(6)).to(torch.float64)
    batch = ids(9)
    found = program.run(batch)
    assert found.dtype == torch.float64
    assert torch.equal(found, module.double()(batch))


def test_the_compressed_program_exports_where_the_original_does(
    model: type[Base], name: str, kind: SiteKind, operator: str, tmp_path: Path
) -> None:
    program = afm_fx.capture(model().eval(), ids(6))
    compressed = afm_fx.compress(program, [ids(64) for _ in range(3)], afm_fx.Fixed(embedding=2, linear=2)).program
    for position, each in enumerate((program, compressed)):
        report = afm_fx.export_onnx(each, tmp_path / f"{position}.onnx")
        assert report.max_abs_difference is not None
        assert report.max_abs_difference <= 1e-5
        assert {finding.rule for finding in afm_fx.check_onnx(report.path).findings} == {"control flow"}
