"""The vector cross network of DCN at Criteo's shape, on codes: how wide the vectors of the rewritten graph are."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch.fx import GraphModule, Node

import afm_fx
from passes.codes.factor import Factor, factor_of
from passes.graph import PROVENANCE, aten
from passes.laws.verdicts import Fate
from passes.sink_codes import SinkCodes
from passes.sites.sites import SiteKind, find_sites
from tests.zoo.deepctr_models import _deepctr
from tests.zoo.entry import randomize

FIELDS, WIDTH, DENSE, CODE = 26, 16, 13, 2
FEATURES, CODES = FIELDS * WIDTH + DENSE, FIELDS * CODE + DENSE
SMALLEST_VOCABULARY = 7


def criteo_rows(rows: int) -> torch.Tensor:
    ids = torch.randint(0, SMALLEST_VOCABULARY, (rows, FIELDS))
    return torch.cat([ids.float(), torch.randn(rows, DENSE)], dim=1)


def cross_network(layers: int) -> afm_fx.Program:
    pytest.importorskip("deepctr_torch")
    inputs = _deepctr("inputs")
    fields = [inputs.SparseFeat(f"C{i}", SMALLEST_VOCABULARY + i, embedding_dim=WIDTH) for i in range(FIELDS)]
    columns = [*fields, *(inputs.DenseFeat(f"I{i}", 1) for i in range(DENSE))]
    model = _deepctr("models").DCN(
        columns, columns, cross_num=layers, cross_parameterization="vector", dnn_hidden_units=(16,)
    )
    randomize(model, torch.Generator().manual_seed(layers))
    return afm_fx.capture(model.eval(), criteo_rows(6))


def table_factors(program: afm_fx.Program, rank: int, *, centred: bool) -> dict[str, Factor]:
    factors = {}
    for site in find_sites(program.graph_module):
        if site.refusal is None and site.kind is SiteKind.EMBEDDING:
            basis = torch.linalg.qr(torch.randn(WIDTH, rank, dtype=torch.float64))[0]
            centre = torch.randn(WIDTH, dtype=torch.float64) if centred else None
            factors[site.name] = factor_of(basis.mT.contiguous(), basis, centre)
    assert len(factors) == FIELDS
    return factors


def in_cross_network(module: GraphModule) -> Iterator[Node]:
    """The calls that stand for what the model does inside its cross network."""
    for node in module.graph.nodes:
        owners = [path for path, _ in node.meta.get("nn_module_stack", {}).values()]
        if node.op == "call_function" and any(path.endswith("crossnet") for path in owners):
            yield node


def widths(module: GraphModule) -> set[int]:
    return {int(node.meta["val"].shape[-1]) for node in in_cross_network(module)}


@pytest.mark.parametrize("layers", [1, 2, 6])
@pytest.mark.parametrize("centred", [False, True], ids=["without offsets", "with offsets"])
def test_the_cross_network_works_on_codes_and_one_more_channel_for_gated_offsets(layers: int, centred: bool) -> None:
    program = cross_network(layers)
    assert max(node.meta["val"].shape[-2] for node in in_cross_network(program.graph_module)) == FEATURES
    low_rank = program.clone().graph_module
    sink = SinkCodes(table_factors(program, CODE, centred=centred))
    sink(low_rank)
    vectors = {width for width in widths(low_rank) if width > 1}
    # The first layer crosses ungated features; from the second on a Linear reads the gate's channel as well.
    assert vectors == ({CODES, CODES + 1} if centred and layers > 1 else {CODES})
    gates = [node for node in in_cross_network(low_rank) if node.target is aten.mul.Tensor]
    assert [int(node.meta["val"].shape[-1]) for node in gates] == [CODES] * layers
    assert all(node.meta[PROVENANCE] != "restore" for node in in_cross_network(low_rank))


@pytest.mark.parametrize("layers", [1, 2, 6])
def test_no_features_are_restored_anywhere_in_it(layers: int) -> None:
    program = cross_network(layers)
    low_rank = program.clone().graph_module
    sink = SinkCodes(table_factors(program, CODE, centred=True))
    sink(low_rank)
    assert {verdict.fate for verdict in sink.verdicts} == {Fate.ABSORBED, Fate.ON_CODES}
    assert all(node.meta.get(PROVENANCE) != "restore" for node in low_rank.graph.nodes)
    values = [node.meta.get("val") for node in low_rank.graph.nodes]
    sizes = {str(size) for value in values if isinstance(value, torch.Tensor) for size in value.shape}
    assert str(CODES) in sizes
    assert str(FEATURES) not in sizes


@pytest.mark.parametrize("layers", [1, 2, 6])
def test_it_equals_the_original_at_full_rank(layers: int) -> None:
    program = cross_network(layers).to(torch.float64)
    low_rank = program.clone()
    SinkCodes(table_factors(program, WIDTH, centred=True))(low_rank.graph_module)
    batch = criteo_rows(9)
    torch.testing.assert_close(low_rank.run(batch), program.run(batch), rtol=1e-10, atol=1e-10)
