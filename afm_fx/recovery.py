"""Recovery: trains a low-rank program until it says what the original says again.

The teacher is the original, so no labels are needed; with them, the program also learns from the labels. Whatever
happens, the state with the smallest error on held-out rows is returned, and the program as it was given is one of the
states.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from torch import nn

from afm_fx.capture import capture
from afm_fx.errors import RecoveryError
from afm_fx.process_groups import Group, agreed, check_alike, check_group, rank_and_size
from afm_fx.program import Program
from afm_fx.recovery_data import Batches, RecoveryData
from afm_fx.recovery_loss import TeacherLogits
from afm_fx.recovery_parameters import choose_parameters, with_own_copies
from afm_fx.recovery_report import Recovered, RecoveryReport
from afm_fx.recovery_settings import RecoverySettings, Trainable
from afm_fx.recovery_training import RecoveryRun, set_values
from passes.activate_codes import ActivateCodes
from passes.graph_tools import clone_graph_module


def recover(
    program: Program,
    teacher: Program | nn.Module,
    batches: Batches,
    *,
    labels: bool = False,
    epochs: int = 3,
    learning_rate: float = 3e-3,
    label_weight: float = 0.9,
    trainable: str | Trainable | Sequence[str] = Trainable.FACTORS,
    held_out: float | Batches = 0.1,
    patience: int | None = None,
    activation: str | None = None,
    seed: int = 0,
    checkpoint: str | os.PathLike[str] | None = None,
    group: Group | None = None,
) -> Recovered:
    """Trains a low-rank program on the original's logits, and on labels where there are any.

    The same call tunes the original itself, as a control of what labels alone bring: give it as program and teacher,
    with ``labels=True`` and ``trainable="all"``.

    Args:
        program: the low-rank program; recover before packing, for a packed program has a few more parameters. It is
            left as it is.
        teacher: the original, a program or a module.
        batches: what the original takes, batch by batch, gone through once per epoch: a list (shuffled here batch by
            batch), a ``DataLoader`` that does not shuffle, or a function that returns a new iterator each time.
        labels: batches are pairs ``(inputs, labels)``; labels are ``[rows]``, or ``[rows, tasks]`` in the order of the
            model's outputs, numbers from 0 to 1.
        epochs: passes over the training batches.
        learning_rate: of Adam, at the first step; it falls to zero along half a cosine. Where the program is nearly
            exact already (a logit error of 0.01, say), the default leaves it as it is, and a tenth of it may help.
        label_weight: share of the loss that the labels make: 1 learns from labels only.
        trainable: "factors" (what the rewrite made or changed), "all", or names of parameters.
        held_out: share of the batches that are measured on and not trained on (at least one batch), or batches of their
            own. With labels, rows that the teacher was not trained on tell more.
        patience: epochs without a smaller held-out error before training stops; None trains all epochs.
        activation: "relu" puts one between the two factors of every Linear, as the authors' variant has it. That
            changes the model, and by much at small ranks; where training does not make it better than the program
            given, that is returned.
        seed: of the held-out batches and of the order. The same seed gives the same result.
        checkpoint: file (safetensors) to save after each epoch and, where it exists, to go on from. Over processes the
            first one reads and writes it.
        group: processes that train together, for example ``torch.distributed.group.WORLD``. All make the same call
            with the same batches; each works on its part of the rows of every batch, gradients and held-out errors are
            added up, and all return the same. That is what one process would do, but for rounding.

    Returns:
        A new program, and the report: the best state on the held-out rows, by LogLoss with labels and by logit error
        without. Parameters that were not trained are shared with the program given.

    Raises:
        RecoveryError: an unusable setting, batches that cannot be gone through again, labels of a wrong shape or value,
            nothing to train, a checkpoint of another run, or a loss that became NaN.
        BatchError: a batch does not fit the model.
        OtherProcessError: another process of the group failed (which, and why) or died.
    """
    check_group(group)

    def prepare() -> _Prepared:
        names = trainable if isinstance(trainable, str) else tuple(trainable)
        share = float(held_out) if isinstance(held_out, int | float) else None
        weight = label_weight if labels else None
        settings = RecoverySettings(epochs, learning_rate, weight, names, share, patience, activation, seed)
        data = RecoveryData(
            program,
            batches,
            labels=labels,
            held_out=held_out if share is None else share,
            seed=seed,
            part=rank_and_size(group),
        )
        first = data.held_out[0]
        original = teacher if isinstance(teacher, Program) else capture(teacher, first.inputs)
        target = TeacherLogits(original, first, keep=data.keeps_batches)
        chosen = choose_parameters(program, original, names)
        changed, sites = (program, ()) if activation is None else _activated(program)
        student, parameters = with_own_copies(changed, chosen)
        run = RecoveryRun(settings, data, target, student, parameters, checkpoint=checkpoint, group=group)
        return _Prepared(run, chosen, sites)

    prepared = _told(prepare, group)
    run, data, settings, chosen = prepared.run, prepared.run.data, prepared.run.settings, prepared.chosen
    student, parameters = run.student, run.parameters
    state, stopped = run.train(program)
    report = RecoveryReport(
        epochs=state.epochs,
        best=state.best,
        stopped=stopped,
        trained=chosen,
        parameters_trained=sum(parameter.numel() for parameter in parameters.values()),
        parameters=program.parameter_count(),
        training_batches=data.steps,
        held_out_rows=sum(batch.rows for batch in data.held_out),
        activated=prepared.sites if state.best > 0 else (),
        settings=settings,
    )
    if state.best == 0:
        student, parameters = with_own_copies(program, chosen)
    set_values(parameters, state.best_values)
    if state.best > 0:
        recipe = program.recipe.then("recover", epochs=state.best, labels=labels, activation=activation, seed=seed)
        student = replace(student, recipe=recipe)
    return Recovered(student, report)


@dataclass(frozen=True)
class _Prepared:
    """A run before its first step: what it trains, and the sites with an activation."""

    run: RecoveryRun
    chosen: tuple[str, ...]
    sites: tuple[str, ...]


def _told(prepare: Callable[[], _Prepared], group: Group | None) -> _Prepared:
    """What this process prepared, once all have and it is the same in all."""
    failure, prepared = None, None
    try:
        prepared = prepare()
    except Exception as error:  # noqa: BLE001 - whatever it is, the other processes wait to be told
        failure = error
    check_alike(agreed(group, failure, None if prepared is None else prepared.run.identity()), "recovers")
    assert prepared is not None  # noqa: S101 - else there was a failure, and that was raised
    return prepared


def _activated(program: Program) -> tuple[Program, tuple[str, ...]]:
    """The program with a ReLU between the factors of its Linears, and the sites."""
    module = clone_graph_module(program.graph_module)
    activate = ActivateCodes()
    activate(module)
    if not activate.sites:
        raise RecoveryError(
            "an activation between factors was asked for, and the program has no Linear whose code is decoded by a "
            "Linear of its own; factor Linears, and recover before packing"
        )
    return program.with_graph(module), activate.sites
