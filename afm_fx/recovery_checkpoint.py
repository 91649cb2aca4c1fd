"""Checkpoints of a recovery: everything that an interrupted one needs to go on as if nothing had happened.

Randomness needs no state: the order of an epoch's batches follows from the seed and the epoch's number.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from afm_fx.errors import RecoveryError
from afm_fx.recovery_report import RecoveryEpoch
from afm_fx.recovery_settings import RecoverySettings
from afm_fx.tensor_files import complete, load_tensors, save_tensors

KIND = "recovery"
VERSION = 1

MOMENTS = ("exp_avg", "exp_avg_sq")


@dataclass(frozen=True)
class RecoveryState:
    """A recovery between two epochs.

    Attributes:
        epochs: the epochs so far.
        best: number of the best of them.
        current: trained parameters by name, after the last epoch.
        best_values: the same after the best epoch.
        moments: Adam's two running means by parameter name, empty before the first step.
        steps: steps that Adam took.
    """

    epochs: tuple[RecoveryEpoch, ...]
    best: int
    current: Mapping[str, Tensor]
    best_values: Mapping[str, Tensor]
    moments: Mapping[str, tuple[Tensor, Tensor]]
    steps: int


def run_identity(
    settings: RecoverySettings, start: Mapping[str, Tensor], batches: int, held_out_rows: int
) -> dict[str, Any]:
    """What two runs must share for one to go on where the other was interrupted.

    Args:
        settings: the schedule.
        start: the trained parameters as they were given.
        batches: training batches per epoch.
        held_out_rows: held-out rows.
    """
    digest = hashlib.sha256()
    for name, tensor in start.items():
        digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().numpy().tobytes())
    identity = {
        **asdict(settings),
        "parameters": digest.hexdigest(),
        "training batches": batches,
        "held-out rows": held_out_rows,
    }
    plain: dict[str, Any] = json.loads(json.dumps(identity))  # as it comes back from a file
    return plain


def save_state(path: str | os.PathLike[str], state: RecoveryState, identity: Mapping[str, Any]) -> None:
    """Writes a state; the one before is replaced whole."""
    tensors: dict[str, Tensor] = {}
    for name, tensor in state.current.items():
        tensors[f"current/{name}"], tensors[f"best/{name}"] = tensor.detach(), state.best_values[name].detach()
    for name, pair in state.moments.items():
        tensors.update({f"{kind}/{name}": tensor for kind, tensor in zip(MOMENTS, pair, strict=True)})
    header = {
        "identity": dict(identity),
        "epochs": [asdict(epoch) for epoch in state.epochs],
        "best": state.best,
        "steps": state.steps,
        "names": list(state.current),
    }
    save_tensors(path, KIND, VERSION, header, tensors, force=True)


def load_state(path: str | os.PathLike[str], identity: Mapping[str, Any]) -> RecoveryState | None:
    """Reads a state, None where there is no such file yet.

    Raises:
        FileFormatError: the file is damaged, or something else than a recovery.
        RecoveryError: it belongs to a run with other settings, parameters or data.
    """
    if not Path(path).exists():
        return None
    header, tensors = load_tensors(path, KIND, VERSION)
    with complete(path, KIND):
        differing = sorted(name for name, value in identity.items() if header["identity"].get(name) != value)
    if differing:
        raise RecoveryError(
            f"checkpoint '{path}' is of another run, which differs in {', '.join(differing)}; name another checkpoint, "
            "or remove this one to start over"
        )
    with complete(path, KIND):
        names = header["names"]
        steps = int(header["steps"])
        moments = {name: (tensors[f"exp_avg/{name}"], tensors[f"exp_avg_sq/{name}"]) for name in names if steps}
        return RecoveryState(
            epochs=tuple(RecoveryEpoch(**epoch) for epoch in header["epochs"]),
            best=int(header["best"]),
            current={name: tensors[f"current/{name}"] for name in names},
            best_values={name: tensors[f"best/{name}"] for name in names},
            moments=moments,
            steps=steps,
        )
