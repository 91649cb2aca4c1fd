"""Bad input gets a typed error that names the culprit; nothing is written, and nothing is changed by half."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

import afm_fx
from afm_fx.errors import (
    BatchError,
    CalibrationError,
    FileFormatError,
    OutputExistsError,
    PlanError,
    PolicyError,
    UserError,
)
from tests.zoo.entry import ZooEntry
from tests.zoo.models import ZOO, captured

ROWS = 64


def entry(name: str) -> ZooEntry:
    return next(entry for entry in ZOO if entry.name == name)


@pytest.fixture(scope="module")
def program() -> afm_fx.Program:
    return captured("DictInputModel")[1]


@pytest.fixture(scope="module")
def batches() -> list[dict[str, Tensor]]:
    return [entry("DictInputModel").inputs(ROWS, seed) for seed in range(3)]


@pytest.fixture(scope="module")
def statistics(program, batches) -> afm_fx.Statistics:
    return afm_fx.calibrate(program, batches)


@pytest.fixture(scope="module")
def plan(program, statistics) -> afm_fx.Plan:
    return afm_fx.make_plan(program, statistics, afm_fx.Fixed(embedding=2, linear=4))


@pytest.fixture(autouse=True)
def _the_program_is_left_as_it_is(program) -> Iterator[None]:
    graph = str(program.graph_module.graph)
    state = {name: tensor.clone() for name, tensor in program.graph_module.state_dict().items()}
    yield
    assert str(program.graph_module.graph) == graph
    after = program.graph_module.state_dict()
    assert after.keys() == state.keys()
    assert all(torch.equal(after[name], state[name]) for name in state)


# Calibration


def test_no_batches(program):
    with pytest.raises(CalibrationError, match="no calibration batches"):
        afm_fx.calibrate(program, [])
    with pytest.raises(CalibrationError, match="no calibration batches"):
        afm_fx.compress(captured("DictInputModel")[0], [], afm_fx.FullRank())


@pytest.mark.parametrize("batches", [torch.zeros(3, 4), {"user": torch.zeros(3)}])
def test_one_batch_instead_of_batches(program, batches):
    with pytest.raises(CalibrationError, match="iterable of batches"):
        afm_fx.calibrate(program, batches)


def _without(features: dict[str, Tensor], key: str) -> dict[str, Tensor]:
    return {name: value for name, value in features.items() if name != key}


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        pytest.param(lambda f: _without(f, "city"), r"batch 1: .*missing \['city'\]", id="a key missing"),
        pytest.param(lambda f: {**f, "label": f["dense"]}, r"batch 1: .*unexpected \['label'\]", id="a key too many"),
        pytest.param(lambda f: {**f, "dense": f["dense"][:, :2]}, r"batch 1: .*dense.* shape \[64, 2\]", id="shape"),
        pytest.param(lambda f: {**f, "dense": f["dense"].double()}, r"batch 1: .*dense.* torch\.float64", id="dtype"),
        pytest.param(lambda f: {**f, "user": f["user"].float()}, r"batch 1: .*user.* torch\.float32", id="float ids"),
        pytest.param(lambda f: {**f, "user": f["user"][:5]}, r"batch 1: .*disagree on the batch size", id="rows"),
        pytest.param(lambda f: {name: value[:0] for name, value in f.items()}, "batch 1: .*empty", id="empty"),
        pytest.param(lambda f: (f, torch.zeros(ROWS)), "batch 1: .*2 positional inputs", id="labels beside the inputs"),
        pytest.param(lambda f: None, "batch 1: ", id="nothing"),
    ],
)  # fmt: skip
def test_a_batch_that_does_not_fit(program, batches, spoil, message):
    with pytest.raises(BatchError, match=message):
        afm_fx.calibrate(program, [batches[0], spoil(batches[1])])


@pytest.mark.parametrize("bad", [97, 10**6, -1])
def test_an_id_outside_its_table(program, batches, bad):
    ids = batches[1]["item"].clone()
    ids[17] = bad
    message = rf"batch 1, row 17: id {bad} of input '.*item'.*'tables\.item' \(ids 0 to 96\)"
    with pytest.raises(BatchError, match=message):
        afm_fx.calibrate(program, [batches[0], {**batches[1], "item": ids}])


def test_an_id_outside_its_table_when_ids_are_float_columns():
    if not any(entry.name == "DeepFM" for entry in ZOO):
        pytest.skip("deepctr-torch is not installed")
    pytest.importorskip("deepctr_torch")
    deepfm = entry("DeepFM")
    inputs = deepfm.inputs(ROWS, 0).clone()
    inputs[5, 2] = 97
    with pytest.raises(BatchError, match=r"batch 0, row 5: id 97 of input 'x', column 2 .*\(ids 0 to 96\)"):
        afm_fx.calibrate(captured("DeepFM")[1], [inputs])


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_a_value_that_is_not_finite_in_a_batch(program, batches, value):
    dense = batches[1]["dense"].clone()
    dense[3, 1] = value
    with pytest.raises(CalibrationError, match=rf"batch 1: input '.*dense' has the value {value} at position \[3, 1\]"):
        afm_fx.calibrate(program, [batches[0], {**batches[1], "dense": dense}])


def test_a_value_that_is_not_finite_inside_the_model(batches):
    model, example = entry("DictInputModel").load()
    with torch.no_grad():
        model.get_parameter("tables.item.weight")[0] = float("nan")
    with pytest.raises(CalibrationError, match=r"batch 0: .*tables\.item.* has the value nan at position \[0, 0\]"):
        afm_fx.calibrate(afm_fx.capture(model, example), batches)


def test_fewer_rows_than_features_warns_with_the_site_and_still_works(program, batches):
    few = {name: value[:3] for name, value in batches[0].items()}
    statistics = afm_fx.calibrate(program, [few])
    with pytest.warns(UserWarning, match=r"site '[\w.]+' saw 3 rows for [0-9]+ features"):
        plan = afm_fx.make_plan(program, statistics, afm_fx.Fixed(embedding=2, linear=4))
    assert torch.isfinite(afm_fx.apply_plan(program, plan).run(batches[1])).all()


@pytest.mark.parametrize("policy", [afm_fx.FullRank(), afm_fx.Fixed(2, 4), afm_fx.Energy(0.99), afm_fx.Budget(0.5)])
def test_constant_and_zero_features_are_compressed_without_a_crash(batches, policy):
    model, example = entry("DictInputModel").load()
    with torch.no_grad():
        model.get_parameter("tables.user.weight").fill_(0.25)
        model.get_parameter("tables.city.weight").zero_()
        model.get_parameter("mlp.0.weight").zero_()
    program = afm_fx.capture(model, example)
    low_rank = afm_fx.compress(program, batches, policy).program
    found, expected = low_rank.run(batches[1]), program.run(batches[1])
    assert torch.isfinite(found).all()
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)


def test_statistics_of_another_model(program):
    with pytest.raises(CalibrationError, match="another model"):
        afm_fx.make_plan(program, _other_statistics(), afm_fx.FullRank())


def test_statistics_of_different_models_are_not_added(statistics):
    with pytest.raises(CalibrationError, match="different models"):
        statistics + _other_statistics()


def _other_statistics() -> afm_fx.Statistics:
    other = entry("KeywordInputModel")
    return afm_fx.calibrate(captured("KeywordInputModel")[1], [other.inputs(ROWS, 0)])


# Policies


@pytest.mark.parametrize(
    ("policy", "message"),
    [
        (lambda: afm_fx.Fixed(overrides={"tables.item": 9}), r"'tables.item'.* rank 9, .* only 8 features"),
        (lambda: afm_fx.Fixed(overrides={"tables.itme": 2}), r"'tables.itme', which is no site.*tables\.item"),
        (lambda: afm_fx.Fixed(overrides={"dnn.linears.1": 2}), r"'dnn.linears.1', which is no site"),
        (lambda: afm_fx.Fixed(overrides={"tables.item": -1}), r"overrides\['tables.item'\].*at least 0"),
        (lambda: afm_fx.Fixed(overrides={"tables.item": True}), r"overrides\['tables.item'\].*at least 0"),
        (lambda: afm_fx.Fixed(embedding=0), "embedding must be a rank of at least 1"),
        (lambda: afm_fx.Fixed(linear=True), "linear must be a rank of at least 1"),
        (lambda: afm_fx.Energy(0.0), "Energy takes a share above 0"),
        (lambda: afm_fx.Energy(1.5), "Energy takes a share above 0 and up to 1"),
        (lambda: afm_fx.Budget(parameters=0), "Budget takes a share above 0"),
        (lambda: afm_fx.Budget(parameters=20), "Budget takes a share above 0 and up to 1"),
        (lambda: afm_fx.Budget(parameters=float("nan")), "Budget takes a share"),
        (lambda: afm_fx.Budget(parameters=0.01), r"smallest reachable is 0\.\d+"),
    ],
)  # fmt: skip
def test_a_policy_that_asks_for_the_impossible(program, statistics, policy, message):
    with pytest.raises(PolicyError, match=message):
        afm_fx.make_plan(program, statistics, policy())


def test_an_unknown_basis(program, statistics):
    with pytest.raises(PolicyError, match=r"no basis 'pca'.*afm.*weight_svd"):
        afm_fx.make_plan(program, statistics, afm_fx.FullRank(), basis="pca")


# Plans


def test_a_plan_for_another_model(plan):
    with pytest.raises(PlanError, match="another model"):
        afm_fx.apply_plan(captured("KeywordInputModel")[1], plan)


def test_a_plan_for_another_checkpoint_shape(plan):
    model, example = entry("DictInputModel").load()
    tables = model.get_submodule("tables")
    assert isinstance(tables, nn.ModuleDict)
    tables["item"] = nn.Embedding(60, 8)  # tables may grow, not shrink
    with pytest.raises(PlanError, match=r"another checkpoint: 'tables\.item' is \[60, 8\].*\[97, 8\]"):
        afm_fx.apply_plan(afm_fx.capture(model, example), plan)


# Files


def savers(plan: afm_fx.Plan, statistics: afm_fx.Statistics) -> dict[str, tuple[Any, Callable[[Path], Any]]]:
    return {"plan": (plan, afm_fx.Plan.load), "statistics": (statistics, afm_fx.Statistics.load)}


@pytest.fixture(params=["plan", "statistics"])
def saved(request, plan, statistics, tmp_path) -> tuple[Path, Any, Callable[[Path], Any]]:
    thing, load = savers(plan, statistics)[request.param]
    path = tmp_path / f"{request.param}.safetensors"
    thing.save(path)
    load(path)
    return path, thing, load


def test_an_existing_path_is_refused_and_kept(saved):
    path, thing, load = saved
    before = path.read_bytes()
    with pytest.raises(OutputExistsError, match=r"exists already.*force"):
        thing.save(path)
    assert path.read_bytes() == before
    thing.save(path, force=True)
    load(path)
    assert [file.name for file in path.parent.iterdir()] == [path.name]


@pytest.mark.parametrize("share", [0.0, 0.01, 0.3, 0.9, 0.999])
def test_a_truncated_file(saved, share):
    path, _, load = saved
    content = path.read_bytes()
    path.write_bytes(content[: int(share * len(content))])
    with pytest.raises(FileFormatError, match=path.name):
        load(path)


def test_a_file_of_something_else(saved):
    path, _, load = saved
    path.write_bytes(b"PK\x03\x04" + b"\0" * 500)
    with pytest.raises(FileFormatError, match=path.name):
        load(path)


def test_a_file_that_is_not_there(saved):
    path, _, load = saved
    with pytest.raises(FileFormatError, match="no file"):
        load(path.with_name("nowhere"))


def test_a_directory_instead_of_a_file(saved):
    path, _, load = saved
    with pytest.raises(FileFormatError):
        load(path.parent)


def test_a_plan_is_no_statistics_and_the_other_way_round(plan, statistics, tmp_path):
    plan.save(tmp_path / "plan")
    statistics.save(tmp_path / "statistics")
    with pytest.raises(FileFormatError, match="holds plan, not a statistics"):
        afm_fx.Statistics.load(tmp_path / "plan")
    with pytest.raises(FileFormatError, match="holds statistics, not a plan"):
        afm_fx.Plan.load(tmp_path / "statistics")


def test_a_checkpoint_instead_of_a_plan(tmp_path):
    torch.save({"weight": torch.zeros(3)}, tmp_path / "model.pt")
    save_file({"weight": torch.zeros(3)}, tmp_path / "model.safetensors")
    for name in ("model.pt", "model.safetensors"):
        with pytest.raises(FileFormatError, match=name):
            afm_fx.Plan.load(tmp_path / name)


def _rewrite(path: Path, change: Callable[[dict[str, Any], dict[str, Tensor]], object]) -> None:
    """Saves the file again after a change of its header or tensors."""
    with safe_open(str(path), framework="pt") as file:
        header = json.loads(file.metadata()["afm_fx"])
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a mapping
    change(header, tensors)
    save_file(tensors, path, {"afm_fx": json.dumps(header)})


def test_a_file_of_a_later_version(saved):
    path, _, load = saved
    _rewrite(path, lambda header, _: header.update(version=99))
    with pytest.raises(FileFormatError, match="version 99"):
        load(path)


def test_a_file_with_a_tensor_missing(saved):
    path, _, load = saved
    _rewrite(path, lambda _, tensors: tensors.pop(next(name for name in sorted(tensors) if "/" in name)))
    with pytest.raises(FileFormatError, match=path.name):
        load(path)


def test_a_file_with_a_header_entry_missing(saved):
    path, _, load = saved
    _rewrite(path, lambda header, _: header.pop("sites", header.pop("counts", None)))
    with pytest.raises(FileFormatError, match=path.name):
        load(path)


def test_a_plan_whose_factor_has_another_shape_than_it_says(plan, program, tmp_path):
    path = tmp_path / "plan"
    plan.save(path)

    def shrink(_: dict[str, Any], tensors: dict[str, Tensor]) -> None:
        tensors["tables.item/decoder"] = tensors["tables.item/decoder"][:, :1].contiguous()

    _rewrite(path, shrink)
    with pytest.raises(UserError):
        afm_fx.apply_plan(program, afm_fx.Plan.load(path))


def test_files_survive_a_round_trip(plan, program, batches, statistics, tmp_path):
    plan.save(tmp_path / "plan")
    statistics.save(tmp_path / "statistics")
    again = afm_fx.Plan.load(tmp_path / "plan")
    assert torch.equal(
        afm_fx.apply_plan(program, again).run(batches[0]), afm_fx.apply_plan(program, plan).run(batches[0])
    )
    replanned = afm_fx.make_plan(program, afm_fx.Statistics.load(tmp_path / "statistics"), afm_fx.Fixed(2, 4))
    assert replanned.sites == plan.sites


# Models


def test_a_model_in_training_mode_is_compressed_in_eval_and_given_back_in_training(batches):
    model, _ = entry("DictInputModel").load()
    model.train()
    model.get_submodule("mlp").eval()
    modes = [module.training for module in model.modules()]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        afm_fx.compress(model, batches, afm_fx.Fixed(2, 4))
    assert [module.training for module in model.modules()] == modes


def test_every_error_of_a_user_is_a_user_error():
    for error in (BatchError, CalibrationError, FileFormatError, OutputExistsError, PlanError, PolicyError):
        assert issubclass(error, UserError)
