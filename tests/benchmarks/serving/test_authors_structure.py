from __future__ import annotations

from pathlib import Path

import pytest
import torch

from afm_fx.program.capture import capture
from afm_fx.runtime.onnx_export import export_onnx
from benchmarks.serving.authors_structure import AuthorsDeepFM


def model(ranks: tuple[int | None, ...] = (None, 4)) -> AuthorsDeepFM:
    torch.manual_seed(0)
    return AuthorsDeepFM((5, 9, 3), 2, code_width=2, width=6, hidden=(8, 8), ranks=ranks).eval()


def batch(rows: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(rows)
    ids = torch.stack([torch.randint(0, size, (rows,), generator=generator) for size in (5, 9, 3)], dim=1)
    return torch.cat([ids.float(), torch.randn(rows, 2, generator=generator)], dim=1)


def test_it_equals_deepfm_written_out_pair_by_pair() -> None:
    peer, x = model(), batch(7)
    ids, dense = x[:, :3].long(), x[:, 3:]
    codes = [peer.codes[field](ids[:, field]) for field in range(3)]
    features = [codes[field] @ peer.decoder[field] + peer.offset[field] for field in range(3)]
    logit = sum(peer.linear_terms[field](ids[:, field]) for field in range(3)) + peer.dense_term(dense)
    logit = logit + sum((features[i] * features[j]).sum(1, keepdim=True) for i in range(3) for j in range(i))
    logit = logit + peer.mlp(torch.cat([*codes, dense], dim=1))
    torch.testing.assert_close(peer(x), torch.sigmoid(logit))


def test_two_factor_layers_have_the_parameters_of_two_factors() -> None:
    plain, factored = (sum(each.numel() for each in model((None, rank)).parameters()) for rank in (None, 2))
    assert plain - factored == 8 * 8 - 2 * (8 + 8)


def test_it_restores_before_the_interaction_but_feeds_codes_to_the_mlp() -> None:
    assert model().mlp[0].in_features == 3 * 2 + 2
    einsums = [node for node in capture(model(), batch(4)).graph_module.graph.nodes if "einsum" in str(node.target)]
    assert len(einsums) == 1


def test_it_exports(tmp_path: Path) -> None:
    report = export_onnx(capture(model(), batch(4)), tmp_path / "authors.onnx")
    assert report.max_abs_difference is not None
    assert report.max_abs_difference < 1e-5


def test_a_rank_is_needed_per_layer() -> None:
    with pytest.raises(ValueError, match="2 hidden layers need 2 ranks"):
        model((None,))
