"""A user's model and checkpoint: found, built and loaded, or refused with the reason."""

from __future__ import annotations

import itertools
import sys

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from afm_fx.errors import FileFormatError, ModelError
from afm_fx.program.user_model import build_model, read_checkpoint

SOURCE = """
import torch
from torch import nn

def factory():
    return nn.Linear(3, 2), torch.rand(2, 3)

def only_model():
    return nn.Linear(3, 2)

def broken():
    raise KeyError("vocabulary.txt")

number = 3
"""
_numbers = itertools.count()


@pytest.fixture
def module(tmp_path, monkeypatch):
    """Name of a fresh module in the working directory."""
    name = f"user_module_{next(_numbers)}"
    (tmp_path / f"{name}.py").write_text(SOURCE)
    monkeypatch.chdir(tmp_path)
    yield name
    sys.modules.pop(name, None)


@pytest.mark.parametrize("form", ["plain", "wrapped", "prefixed", "safetensors"])
def test_a_checkpoint_is_loaded_into_the_model_of_the_working_directory(module, tmp_path, form):
    state = {name: torch.rand(value.shape) for name, value in nn.Linear(3, 2).state_dict().items()}
    path = tmp_path / ("weights.safetensors" if form == "safetensors" else "weights.pt")
    if form == "safetensors":
        save_file(state, path)
    else:
        prefixed = {f"model.{name}": value for name, value in state.items()} | {"step": torch.ones(())}
        torch.save({"plain": state, "wrapped": {"epoch": 3, "state_dict": state}, "prefixed": prefixed}[form], path)
    model, example = build_model(f"{module}:factory", path)
    assert not model.training
    assert example.shape == (2, 3)
    for name, value in model.state_dict().items():
        assert torch.equal(value, state[name])


def test_the_search_path_is_left_as_it_was(module):
    before = list(sys.path)
    build_model(f"{module}:factory")
    assert sys.path == before


@pytest.mark.parametrize(
    ("attribute", "says"),
    [
        ("only_model", "must return \\(model, example_inputs\\).*got a Linear"),
        ("broken", "raised KeyError: 'vocabulary.txt'"),
        ("number", "is a int; name a function"),
        ("nothing", "has no 'nothing'"),
    ],
)
def test_a_wrong_factory_is_told(module, attribute, says):
    with pytest.raises(ModelError, match=says):
        build_model(f"{module}:{attribute}")


@pytest.mark.parametrize("name", ["no_colon", ":factory", "module:"])
def test_a_name_without_module_or_factory_is_told(name):
    with pytest.raises(ModelError, match=r"write package.module:factory"):
        build_model(name)


def test_a_missing_module_and_a_missing_dependency_are_told_apart(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "needs_more.py").write_text("import a_package_that_is_not_there\n")
    with pytest.raises(ModelError, match=r"there is no module 'not_here.models'"):
        build_model("not_here.models:factory")
    with pytest.raises(ModelError, match=r"'needs_more' needs 'a_package_that_is_not_there'"):
        build_model("needs_more:factory")


def test_a_checkpoint_of_another_model_is_told(module, tmp_path):
    path = tmp_path / "other.pt"
    torch.save(nn.Linear(4, 2).state_dict(), path)
    with pytest.raises(ModelError, match=r"'weight' is \[2, 4\] in the checkpoint, \[2, 3\] in the model"):
        build_model(f"{module}:factory", path)
    torch.save({"weight": torch.rand(2, 3), "extra": torch.rand(1)}, path)
    with pytest.raises(ModelError, match="missing bias, unexpected extra"):
        build_model(f"{module}:factory", path)


@pytest.mark.parametrize("ending", ["pt", "safetensors"])
def test_a_truncated_checkpoint_is_told(tmp_path, ending):
    path = tmp_path / f"weights.{ending}"
    state = {"weight": torch.rand(100, 100)}
    save_file(state, path) if ending == "safetensors" else torch.save(state, path)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(FileFormatError, match=f"weights.{ending}"):
        read_checkpoint(path)


def test_nothing_of_a_pickled_model_is_executed(tmp_path):
    path = tmp_path / "model.pt"
    torch.save(nn.Linear(2, 2), path)
    with pytest.raises(FileFormatError, match="not read for safety"):
        read_checkpoint(path)


def test_a_checkpoint_without_a_state_dict_and_a_missing_one_are_told(tmp_path):
    path = tmp_path / "numbers.pt"
    torch.save([1, 2, 3], path)
    with pytest.raises(FileFormatError, match="holds no state dict"):
        read_checkpoint(path)
    with pytest.raises(FileFormatError, match="there is no checkpoint"):
        read_checkpoint(tmp_path / "none.pt")
