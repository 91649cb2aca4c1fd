"""Finds, builds and loads a user's model: ``package.module:factory`` and a checkpoint."""

from __future__ import annotations

import contextlib
import importlib
import pickle
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from afm_fx.errors import FileFormatError, ModelError
from afm_fx.io import INDEX_SUFFIX, StoredTensor, open_checkpoint
from afm_fx.program.inputs import Inputs

MAX_NAMES = 5

Stored = TypeVar("Stored", bound=Tensor | StoredTensor)


def build_model(
    name: str, checkpoint: Path | None = None, device: torch.device | None = None
) -> tuple[nn.Module, Inputs]:
    """Calls a model factory and loads a checkpoint into what it returns.

    Args:
        name: ``package.module:factory``; modules of the working directory are found as well. The factory takes
            nothing and returns ``(model, example_inputs)``, the inputs being one batch of at least 2 rows.
        checkpoint: ``.safetensors``, an index of several (``.safetensors.index.json``) or a folder with one, a folder
            of ``torch.distributed.checkpoint``, or a state dict saved with ``torch.save`` (read with
            ``weights_only=True``, which executes nothing); a dict with a ``state_dict`` or ``model_state_dict`` entry
            is unwrapped.
        device: where model and inputs go, None to leave them where the factory made them.

    Returns:
        The model in eval mode and its example inputs.

    Raises:
        ModelError: the factory is missing, fails, or returns something else; the checkpoint fits another model.
        FileFormatError: the checkpoint is missing or damaged.
    """
    factory = import_factory(name)
    stored = {} if checkpoint is None else read_checkpoint(checkpoint)  # before the model is built: it may be wrong
    model, example_inputs = model_of(name, factory)
    if checkpoint is not None:
        tensors = fitting(stored, model, checkpoint)
        state = {name: each if isinstance(each, Tensor) else each.mapped() for name, each in tensors.items()}
        model.load_state_dict(state, strict=False)  # of a tensor with several names one is enough
    if device is not None:
        model = model.to(device)
        example_inputs = pytree.tree_map_only(Tensor, lambda leaf: leaf.to(device), example_inputs)
    return model.eval(), example_inputs


def model_of(name: str, factory: Callable[[], Any]) -> tuple[nn.Module, Inputs]:
    """Calls a model factory; the name is for messages.

    Raises:
        ModelError: it fails, or returns something else than (model, example_inputs).
    """
    try:
        built = factory()
    except Exception as error:  # the user's code may raise anything
        raise ModelError(f"'{name}' raised {type(error).__name__}: {error}") from error
    if not (isinstance(built, tuple) and len(built) == 2 and isinstance(built[0], nn.Module)):
        raise ModelError(f"'{name}' must return (model, example_inputs), an nn.Module first; got {_shape_of(built)}")
    return built


def read_checkpoint(path: Path) -> Mapping[str, Tensor | StoredTensor]:
    """Reads a state dict without executing anything; what can be read in pieces is not read yet.

    Raises:
        FileFormatError: the file is missing, damaged, or holds more than tensors.
    """
    if path.is_dir() or path.name.endswith((".safetensors", INDEX_SUFFIX)):
        return open_checkpoint(path)
    if not path.is_file():
        raise FileFormatError(f"there is no checkpoint '{path}'")
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise FileFormatError(
            f"checkpoint '{path}' is damaged, or holds Python objects, which are not read for safety; save only the "
            "state dict: torch.save(model.state_dict(), path)"
        ) from error
    except (OSError, RuntimeError, EOFError, ValueError, KeyError) as error:
        reason = " ".join(str(error).split())[:200]
        raise FileFormatError(f"checkpoint '{path}' is truncated or not a torch file: {reason}") from error
    for key in ("state_dict", "model_state_dict"):
        if isinstance(content, Mapping) and isinstance(content.get(key), Mapping):
            content = content[key]
    if not isinstance(content, Mapping) or not all(isinstance(value, Tensor) for value in content.values()):
        raise FileFormatError(f"checkpoint '{path}' holds no state dict (parameter names to tensors)")
    return content


def import_factory(name: str) -> Callable[[], Any]:
    """The function that ``package.module:factory`` names; modules of the working directory are found as well.

    Raises:
        ModelError: there is none, or its module cannot be imported.
    """
    module_name, colon, attribute = name.partition(":")
    if not (colon and module_name and attribute):
        raise ModelError(f"'{name}' does not name a model; write package.module:factory")
    with _working_directory_first():
        try:
            module = importlib.import_module(module_name)
        except ModuleNotFoundError as error:
            if error.name is not None and (module_name == error.name or module_name.startswith(f"{error.name}.")):
                raise ModelError(f"there is no module '{module_name}' here or among the installed packages") from error
            raise ModelError(f"module '{module_name}' needs '{error.name}', which is not installed") from error
        except Exception as error:  # the user's code may raise anything
            raise ModelError(f"importing '{module_name}' raised {type(error).__name__}: {error}") from error
    try:
        found: Any = module
        for part in attribute.split("."):
            found = getattr(found, part)
    except AttributeError as error:
        raise ModelError(f"module '{module_name}' has no '{attribute}'") from error
    if not callable(found):
        raise ModelError(f"'{name}' is a {type(found).__name__}; name a function that returns (model, example_inputs)")
    function: Callable[[], Any] = found
    return function


@contextlib.contextmanager
def _working_directory_first() -> Iterator[None]:
    """A console script's path starts at its own folder; a user's modules lie in the working directory."""
    here = str(Path.cwd())
    sys.path.insert(0, here)
    try:
        yield
    finally:
        with contextlib.suppress(ValueError):
            sys.path.remove(here)


def fitting(stored: Mapping[str, Stored], model: nn.Module, path: Path) -> Mapping[str, Stored]:
    """The tensors of a checkpoint as a model names them.

    Where they stand under a prefix, as ``{"model": model.state_dict(), "optimizer": ...}`` has them in a distributed
    checkpoint, the prefix and all that is not under it are left out. Of a tensor with several names one is enough.

    Raises:
        ModelError: the checkpoint is of another model: it lacks some, has others, or they are of other shapes.
    """
    own = model.state_dict(keep_vars=True)
    longest = max(own, key=len, default="")
    prefixes = [name.removesuffix(longest) for name in stored if name.endswith(f".{longest}")]
    prefix = next((each for each in prefixes if all(each + name in stored for name in own)), "")
    if own and not own.keys() <= stored.keys():
        stored = {name.removeprefix(prefix): each for name, each in stored.items() if name.startswith(prefix)}
    known = {id(tensor) for name, tensor in own.items() if name in stored}
    missing = sorted(name for name, tensor in own.items() if id(tensor) not in known)
    unexpected = sorted(stored.keys() - own.keys())
    if missing or unexpected:
        raise ModelError(
            f"checkpoint '{path}' is of another model: missing {_some(missing)}, unexpected {_some(unexpected)}"
        )
    for name, each in stored.items():
        if tuple(each.shape) != tuple(own[name].shape):
            raise ModelError(
                f"checkpoint '{path}' is of another model: '{name}' is {list(each.shape)} in the checkpoint, "
                f"{list(own[name].shape)} in the model"
            )
    return stored


def _some(names: list[str]) -> str:
    more = f" and {len(names) - MAX_NAMES} more" if len(names) > MAX_NAMES else ""
    return (", ".join(names[:MAX_NAMES]) + more) or "nothing"


def _shape_of(value: object) -> str:
    if isinstance(value, tuple):
        return f"a tuple of {', '.join(type(part).__name__ for part in value) or 'nothing'}"
    return f"a {type(value).__name__}"
