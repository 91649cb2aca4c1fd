"""Recovery on models small enough to train in a fraction of a second."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import afm_fx
from afm_fx.errors import BatchError, FileFormatError, RecoveryError
from afm_fx.program.logits import columns_of
from passes.graph import aten
from tests.fast_capture import fast_capture
from tests.graphs import Tower, tower_batch

ROWS, BATCHES = 32, 10


@dataclass(frozen=True)
class Case:
    """A model, the same in low rank, and batches."""

    teacher: afm_fx.Program
    low_rank: afm_fx.Program
    batches: list[tuple[Tensor, ...]]

    def labelled(self) -> list[tuple[tuple[Tensor, ...], Tensor]]:
        """The batches with clicks that the teacher's logits tell something of."""
        logits = [columns_of(self.teacher.run(batch))[:, 0] for batch in self.batches]
        return [(batch, (each > torch.rand(ROWS)).float()) for batch, each in zip(self.batches, logits, strict=True)]

    def recover(self, **options: Any) -> afm_fx.program.Change[afm_fx.recovery.RecoveryReport]:
        """Recovers on the batches."""
        return afm_fx.recover(self.low_rank, self.teacher, self.batches, **{"epochs": 3, "seed": 5, **options})


def low_rank_of(teacher: afm_fx.Program, batches: list[Any], **ranks: Any) -> afm_fx.Program:
    statistics = afm_fx.calibrate(teacher, batches)
    return afm_fx.apply_plan(teacher, afm_fx.make_plan(teacher, statistics, afm_fx.Fixed(**ranks)))


def make_case(model: nn.Module, batches: list[Any], **ranks: Any) -> Case:
    teacher = fast_capture(model.eval(), batches[0])
    return Case(teacher, low_rank_of(teacher, batches, **ranks), batches)


@pytest.fixture(scope="module")
def tower() -> Case:
    torch.manual_seed(3)
    return make_case(Tower(), [tower_batch(ROWS) for _ in range(BATCHES)], embedding=2, linear=3)


class Tasks(nn.Module):
    """Two tasks: a click, and a conversion, whose probability is a product. The tables have padding rows."""

    def __init__(self) -> None:
        super().__init__()
        self.tables = nn.ModuleList(nn.Embedding(9, 6, padding_idx=0) for _ in range(2))
        self.hidden, self.out = nn.Linear(12, 8), nn.Linear(8, 2)

    def forward(self, ids: Tensor) -> Tensor:
        features = torch.cat([table(ids[:, field]) for field, table in enumerate(self.tables)], 1)
        click, after = torch.sigmoid(self.out(torch.relu(self.hidden(features)))).split(1, 1)
        return torch.cat([click, click * after], 1)


@pytest.fixture(scope="module")
def tasks() -> Case:
    torch.manual_seed(4)
    return make_case(Tasks(), [(torch.randint(0, 9, (ROWS, 2)),) for _ in range(BATCHES)], embedding=2, linear=3)


def values(program: afm_fx.Program) -> dict[str, Tensor]:
    return {name: parameter.detach().clone() for name, parameter in program.graph_module.named_parameters()}


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(tensor, other[name]) for name, tensor in one.items())


def changed(case: Case, recovered: afm_fx.program.Change[afm_fx.recovery.RecoveryReport]) -> set[str]:
    before, after = values(case.low_rank), values(recovered.program)
    return {name for name in before if not torch.equal(before[name], after[name])}


def rmse(case: Case, program: afm_fx.Program, batches: list[Any]) -> float:
    """The logit error of programs without sigmoids, by hand."""
    errors = [columns_of(program.run(batch)) - columns_of(case.teacher.run(batch)) for batch in batches]
    return float(torch.cat(errors).double().square().mean().sqrt())


def test_the_held_out_error_falls_in_every_epoch_and_is_that_of_the_program_returned(tower: Case) -> None:
    before = values(tower.low_rank)
    fresh = [tower_batch(ROWS) for _ in range(4)]
    recovered = tower.recover(held_out=fresh, learning_rate=3e-3)
    errors = [epoch.logit_rmse for epoch in recovered.report.epochs]
    assert all(later < earlier for earlier, later in itertools.pairwise(errors))
    assert errors[-1] < 0.9 * errors[0]
    assert recovered.report.best == 3
    assert errors[0] == pytest.approx(rmse(tower, tower.low_rank, fresh), rel=1e-6)
    assert errors[-1] == pytest.approx(rmse(tower, recovered.program, fresh), rel=1e-6)
    assert same(values(tower.low_rank), before)
    assert recovered.report.held_out_rows == 4 * ROWS


def test_where_training_makes_it_worse_the_program_comes_back_as_it_was(tower: Case) -> None:
    recovered = tower.recover(learning_rate=1.0)
    assert recovered.report.best == 0
    assert min(epoch.logit_rmse for epoch in recovered.report.epochs[1:]) > recovered.report.epochs[0].logit_rmse
    assert same(values(recovered.program), values(tower.low_rank))


def test_the_same_seed_gives_the_same_bits_and_another_seed_others(tower: Case) -> None:
    one, two, other = (values(tower.recover(seed=seed).program) for seed in (1, 1, 2))
    assert same(one, two)
    assert not same(one, other)


def test_an_interrupted_recovery_goes_on_to_the_same_bits(tower: Case, tmp_path: Path) -> None:
    whole = tower.recover(epochs=4)
    path, passes = tmp_path / "run" / "recovery.pt", 0

    class Interrupted(list[Any]):
        def __getitem__(self, place: Any) -> Any:
            if passes and (tmp_path / "run").exists():
                raise KeyboardInterrupt
            return super().__getitem__(place)

    passes = 1
    with pytest.raises(KeyboardInterrupt):
        afm_fx.recover(tower.low_rank, tower.teacher, Interrupted(tower.batches), epochs=4, seed=5, checkpoint=path)
    resumed = tower.recover(epochs=4, checkpoint=path)
    assert same(values(resumed.program), values(whole.program))
    assert [epoch.logit_rmse for epoch in resumed.report.epochs] == [epoch.logit_rmse for epoch in whole.report.epochs]
    again = tower.recover(epochs=4, checkpoint=path)
    assert again.report == resumed.report  # seconds too: nothing was trained again
    assert same(values(again.program), values(whole.program))


def test_a_checkpoint_of_another_run_or_of_no_run_is_refused(tower: Case, tmp_path: Path) -> None:
    path = tmp_path / "recovery.pt"
    tower.recover(epochs=1, checkpoint=path)
    with pytest.raises(RecoveryError, match="another run, which differs in learning_rate, seed"):
        tower.recover(epochs=1, learning_rate=1e-5, seed=6, checkpoint=path)
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(FileFormatError, match="damaged"):
        tower.recover(epochs=1, checkpoint=path)


def test_factors_are_trained_and_what_the_rewrite_left_is_shared(tower: Case) -> None:
    recovered = tower.recover(epochs=1)
    left = {"last.weight", "last.bias"}
    assert set(recovered.report.trained) == set(values(tower.low_rank)) - left
    assert changed(tower, recovered) == set(recovered.report.trained)
    shared = [program.graph_module.get_parameter("last.weight") for program in (recovered.program, tower.low_rank)]
    assert shared[0] is shared[1]
    assert recovered.report.parameters_trained == recovered.program.parameter_count() - 13


def test_all_parameters_are_trained_where_that_is_asked_for(tower: Case) -> None:
    assert changed(tower, tower.recover(epochs=1, trainable="all")) == set(values(tower.low_rank))
    with pytest.raises(RecoveryError, match=r"nothing to train.*trainable='all'"):
        afm_fx.recover(tower.teacher, tower.teacher, tower.batches)


def test_the_original_can_be_tuned_on_labels_as_a_control(tower: Case) -> None:
    pairs = tower.labelled()
    tuned = afm_fx.recover(tower.teacher, tower.teacher, pairs, labels=True, trainable="all", epochs=2)
    first, *_, last = tuned.report.epochs
    assert first.logit_rmse == 0
    assert first.log_loss == first.decisive
    assert last.decisive < first.decisive
    assert last.logit_rmse > 0


def test_labels_lower_the_log_loss_below_what_the_teacher_alone_reaches(tower: Case) -> None:
    pairs = tower.labelled()
    options: dict[str, Any] = {"labels": True, "epochs": 3, "learning_rate": 3e-3, "seed": 5}
    losses = {
        weight: afm_fx.recover(tower.low_rank, tower.teacher, pairs, label_weight=weight, **options).report.epochs[-1]
        for weight in (0.0, 1.0)
    }
    assert losses[1.0].decisive < losses[0.0].decisive - 1e-3
    assert losses[1.0].logit_rmse > losses[0.0].logit_rmse


def test_tasks_have_labels_of_their_own_and_products_of_probabilities_are_learned_as_logits(tasks: Case) -> None:
    pairs = [(batch, torch.randint(0, 2, (ROWS, 2))) for batch in tasks.batches]
    recovered = afm_fx.recover(tasks.low_rank, tasks.teacher, pairs, labels=True, held_out=pairs[:2], epochs=2)
    first, *_, last = recovered.report.epochs
    probabilities = torch.cat([tasks.low_rank.run(batch)[0] for batch, _ in pairs[:2]]).double()
    labels = torch.cat([label for _, label in pairs[:2]]).double()
    assert first.log_loss == pytest.approx(float(nn.functional.binary_cross_entropy(probabilities, labels)), rel=1e-6)
    original = torch.cat([tasks.teacher.run(batch)[0] for batch, _ in pairs[:2]]).double()
    error = (torch.logit(probabilities) - torch.logit(original)).square().mean().sqrt()
    assert first.logit_rmse == pytest.approx(float(error), rel=1e-5)
    assert last.decisive < first.decisive


def test_rows_of_padding_stay_zero(tasks: Case) -> None:
    low_rank = tasks.low_rank
    recovered = afm_fx.recover(low_rank, tasks.teacher, tasks.batches, epochs=2, learning_rate=1e-2).program
    lookups = [node for node in low_rank.graph_module.graph.nodes if node.target is aten.embedding.default]
    names = {str(node.args[0].target) for node in lookups}
    assert len(names) == 2
    for name in names:
        before, after = (each.graph_module.get_parameter(name) for each in (low_rank, recovered))
        zero = (before == 0).all(dim=1)
        assert int(zero.sum()) == 1
        assert torch.equal(after == 0, before == 0)
        assert not torch.equal(after[~zero], before[~zero])


def test_a_packed_program_is_refused(tasks: Case) -> None:
    packed = afm_fx.pack(tasks.low_rank).program
    with pytest.raises(RecoveryError, match="recover first, then pack"):
        afm_fx.recover(packed, tasks.teacher, tasks.batches)


def test_the_authors_activation_stands_between_the_factors_and_is_reported(tower: Case) -> None:
    recovered = tower.recover(activation="relu", learning_rate=1e-2, epochs=6)
    assert recovered.report.best > 0
    relus = [node for node in recovered.program.graph_module.graph.nodes if node.target is aten.relu.default]
    assert [node.meta["afm_fx"] for node in relus if "afm_fx" in node.meta] == ["activate code"] * 2
    assert "relu between the factors" in recovered.report.table()
    given = tower.recover(activation="relu", learning_rate=1e-9, epochs=1)
    assert given.report.best == 0
    assert "relu" not in given.report.table()
    assert rmse(tower, given.program, tower.batches) == rmse(tower, tower.low_rank, tower.batches)


def test_the_authors_activation_needs_factored_linears_and_data(tower: Case) -> None:
    with pytest.raises(RecoveryError, match="two are needed; there is 0"):
        afm_fx.recover(tower.low_rank, tower.teacher, [], activation="relu")
    with pytest.raises(RecoveryError, match="no Linear whose code"):
        afm_fx.recover(tower.teacher, tower.teacher, tower.batches, trainable="all", activation="relu")


def test_a_loader_in_a_fixed_order_is_taken_and_one_that_shuffles_is_refused(tower: Case) -> None:
    rows = TensorDataset(*(torch.cat(column) for column in zip(*tower.batches, strict=True)))
    fixed = afm_fx.recover(tower.low_rank, tower.teacher, DataLoader(rows, ROWS), epochs=2)
    assert fixed.report.best == 2
    with pytest.raises(RecoveryError, match=r"other rows in epoch 1.*shuffle=False"):
        afm_fx.recover(tower.low_rank, tower.teacher, DataLoader(rows, ROWS, shuffle=True), epochs=2)
    given = DataLoader(rows, ROWS, shuffle=True)
    free = afm_fx.recover(tower.low_rank, tower.teacher, given, epochs=2, held_out=tower.batches[:2])
    assert free.report.held_out_rows == 2 * ROWS


def test_a_function_that_starts_over_is_taken_and_a_generator_is_refused(tower: Case) -> None:
    def batches() -> Iterator[Any]:
        yield from tower.batches

    assert afm_fx.recover(tower.low_rank, tower.teacher, batches, epochs=1).report.best == 1
    with pytest.raises(RecoveryError, match=r"give a list.* not one generator"):
        afm_fx.recover(tower.low_rank, tower.teacher, batches(), epochs=2)
    used = batches()
    with pytest.raises(RecoveryError, match="an iterator that was used up"):
        afm_fx.recover(tower.low_rank, tower.teacher, lambda: used, epochs=2)


def test_batches_that_are_none_are_refused(tower: Case) -> None:
    low_rank, teacher, batches = tower.low_rank, tower.teacher, tower.batches
    for given, message in (
        (batches[0][0], "not one Tensor"),
        (7, "not one int"),
        (batches[:1], "two are needed; there is 1"),
    ):
        with pytest.raises(RecoveryError, match=message):
            afm_fx.recover(low_rank, teacher, given, epochs=1)  # type: ignore[arg-type]
    with pytest.raises(BatchError, match=r"batch \d: .*pairs of inputs and labels need labels=True"):
        afm_fx.recover(low_rank, teacher, [(batch, torch.ones(ROWS)) for batch in batches])


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (torch.ones(ROWS + 1), r"the labels have shape \[33\], they must be \[32\] or \[32, tasks\]"),
        (torch.full((ROWS,), 2.0), r"batch \d+, row 0: labels lie between 0 and 1, got \[2\.0\]"),
        (torch.full((ROWS,), float("nan")), r"got \[nan\]"),
        (torch.ones(ROWS, 3), "labels of 3 tasks, the model predicts 1"),
        ("clicks", "the labels are a str, no tensor"),
        (None, "the labels are a NoneType, no tensor"),
    ],
)
def test_wrong_labels_are_told_with_their_place(tower: Case, labels: Any, message: str) -> None:
    with pytest.raises(BatchError, match=message):
        afm_fx.recover(tower.low_rank, tower.teacher, [(batch, labels) for batch in tower.batches], labels=True)


def test_batches_without_labels_are_told_where_labels_are_said(tower: Case) -> None:
    with pytest.raises(BatchError, match=r"batches are pairs \(inputs, labels\); got a Tensor"):
        afm_fx.recover(tower.low_rank, tower.teacher, [batch[0] for batch in tower.batches], labels=True)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"epochs": 0}, "epochs must be at least 1"),
        ({"learning_rate": 0.0}, "learning_rate must be positive"),
        ({"trainable": "tables"}, "'factors' or 'all'"),
        ({"held_out": 1.0}, "share of the batches between 0 and 1"),
        ({"activation": "gelu"}, "'relu' or None"),
    ],
)
def test_impossible_settings_are_refused(tower: Case, options: dict[str, Any], message: str) -> None:
    with pytest.raises(RecoveryError, match=message):
        tower.recover(**options)


def test_a_loss_that_is_no_number_names_epoch_and_batch(tower: Case) -> None:
    with pytest.raises(RecoveryError, match=r"the loss is (nan|inf) in epoch \d, batch \d+: .*smaller learning_rate"):
        tower.recover(learning_rate=1e30)
    broken = [(ids, torch.full_like(dense, float("nan"))) for ids, dense in tower.batches]
    with pytest.raises(RecoveryError, match=r"held-out batch 0: the teacher's output is NaN"):
        tower.recover(held_out=broken)


def test_another_models_teacher_is_refused(tower: Case) -> None:
    class Two(Tower):
        def forward(self, ids: Tensor, dense: Tensor) -> Tensor:
            return super().forward(ids, dense).expand(-1, 2)

    with pytest.raises(RecoveryError, match="outputs 1 numbers a row, the teacher 2"):
        afm_fx.recover(tower.low_rank, fast_capture(Two().eval(), tower.batches[0]), tower.batches)


def test_tables_in_fewer_bits_are_recovered_before(tower: Case) -> None:
    reduced = afm_fx.reduce_precision(tower.low_rank, "float16", smallest_bytes=0).program
    with pytest.raises(RecoveryError, match=r"torch\.float16, too coarse to train; recover first"):
        afm_fx.recover(reduced, tower.teacher, tower.batches)


def test_the_report_says_what_was_trained_and_how(tower: Case) -> None:
    report = tower.recover(epochs=2).report
    document = json.loads(json.dumps(asdict(report)))
    assert document["settings"]["learning_rate"] == report.settings.learning_rate
    assert [epoch["logit_rmse"] for epoch in document["epochs"]] == [epoch.logit_rmse for epoch in report.epochs]
    assert f"{report.parameters_trained:,} parameters trained" in report.table()


def test_a_module_may_be_the_teacher() -> None:
    model = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 1))
    batches = [torch.randn(ROWS, 4) for _ in range(4)]
    low_rank = low_rank_of(fast_capture(model, (batches[0],)), batches, linear=1)
    recovered = afm_fx.recover(low_rank, model, batches, epochs=2, learning_rate=1e-2)
    assert recovered.report.epochs[2].logit_rmse < recovered.report.epochs[0].logit_rmse
