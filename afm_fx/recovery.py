"""Recovery: trains a low-rank program until it says what the original says again.

The teacher is the original, so no labels are needed; with them, the program also learns from the labels. Whatever
happens, the state with the smallest error on held-out rows is returned, and the program as it was given is one of the
states.
"""

from __future__ import annotations

import os
from dataclasses import replace

from torch import nn

from afm_fx.change import Change
from afm_fx.process_groups import Group, agreed, attempt, check_alike, check_group
from afm_fx.program import Program
from afm_fx.recovery_data import Batches, RecoveryData
from afm_fx.recovery_report import RecoveryReport, RecoverySettings, Trainable
from afm_fx.recovery_training import RecoveryRun


def recover(
    program: Program,
    teacher: Program | nn.Module,
    batches: Batches,
    *,
    labels: bool = False,
    epochs: int = 3,
    learning_rate: float = 3e-3,
    label_weight: float = 0.9,
    trainable: Trainable = "factors",
    held_out: float | Batches = 0.1,
    activation: str | None = None,
    seed: int = 0,
    checkpoint: str | os.PathLike[str] | None = None,
    group: Group | None = None,
) -> Change[RecoveryReport]:
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
        trainable: "factors" (what the rewrite made or changed) or "all".
        held_out: share of the batches that are measured on and not trained on (at least one batch), or batches of their
            own. With labels, rows that the teacher was not trained on tell more.
        activation: "relu" puts one between the two factors of every Linear, as the authors' variant has it. That
            changes the model, and by much at small ranks; where training does not make it better than the program
            given, that is returned.
        seed: of the held-out batches and of the order. The same seed gives the same result.
        checkpoint: file to save after every epoch and, where it exists, to go on from. Over processes the
            first one reads and writes it.
        group: processes that train together, for example ``torch.distributed.group.WORLD``. All make the same call
            with the same batches; each works on its part of the rows of every batch, gradients and held-out errors are
            added up, and all return the same. That is what one process would do, but for rounding.

    Returns:
        The best state on the held-out rows, by LogLoss with labels and by logit error without; the program given where
        that is the best. Parameters that were not trained are shared with it.

    Raises:
        RecoveryError: an unusable setting, batches that cannot be gone through again, nothing to train, a checkpoint of
            another run, or a loss that became NaN.
        BatchError: a batch does not fit the model, or labels of a wrong shape or value.
        FileFormatError: the checkpoint is damaged.
        OtherProcessError: another process of the group failed (which, and why) or died.
    """
    check_group(group)

    def prepare() -> RecoveryRun:
        share = float(held_out) if isinstance(held_out, int | float) else None
        weight = label_weight if labels else None
        settings = RecoverySettings(epochs, learning_rate, weight, trainable, share, activation, seed)
        data = RecoveryData(program, batches, labels=labels, held_out=held_out, seed=seed, group=group)
        return RecoveryRun(settings, data, program, teacher, group)

    run, failure = attempt(prepare)
    check_alike(agreed(group, failure, run and run.identity()), "recovers")
    assert run is not None  # noqa: S101 - else there was a failure, and that was raised
    state = run.train(checkpoint)
    recipe = program.recipe.then("recover", epochs=state.best, labels=labels, activation=activation, seed=seed)
    report = RecoveryReport(
        epochs=tuple(state.epochs),
        best=state.best,
        trained=tuple(run.parameters),
        parameters_trained=sum(parameter.numel() for parameter in run.parameters.values()),
        parameters=program.parameter_count(),
        training_batches=run.data.steps,
        held_out_rows=sum(batch.rows for batch in run.data.held_out),
        activated=run.activated if state.best > 0 else (),
        settings=run.settings,
    )
    return Change(program if state.best == 0 else replace(run.student, recipe=recipe), report)
