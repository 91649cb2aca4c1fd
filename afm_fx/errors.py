"""Typed errors. Every error a user can cause derives from :class:`UserError`; the command line maps the two
branches to different exit codes (2 for a user's mistake, 1 for a failure of the work itself)."""

from __future__ import annotations

from passes.graph import AfmFxError

__all__ = ["AfmFxError"]

MAX_REASON_CHARACTERS = 600


class UserError(AfmFxError):
    """The input is wrong; the message says what, where and what to do about it."""


class ModelError(UserError):
    """A user's model cannot be found, built or loaded."""


class CaptureError(UserError):
    """``torch.export`` could not capture the model; the message carries torch's own reason, shortened."""


class BatchError(UserError):
    """A batch has the wrong structure, shape, dtype, or an id outside its table."""


class CalibrationError(UserError):
    """Calibration data is missing or unusable (no batches, NaN or infinite activations)."""


class PolicyError(UserError):
    """A policy asks for something impossible (unknown site, rank above a width, unreachable budget)."""


class PlanError(UserError):
    """A plan does not fit the program it is applied to."""


class RecoveryError(UserError):
    """Recovery cannot be done as asked (batches, labels, parameters, checkpoint), or its loss became NaN."""


class FileFormatError(UserError):
    """A file (checkpoint, statistics, plan, data) is truncated, damaged, or of another kind or version."""


class UnsafeFileError(FileFormatError):
    """A file would make its reader read or execute what does not belong to it: data outside its folder, a pickle."""


class ProviderError(UserError):
    """An execution provider is not there, or cannot run the whole file; the message says what is and what to do."""


class OutputExistsError(UserError):
    """An output path exists already and overwriting was not asked for."""


class MissingPackageError(UserError):
    """Something was asked for that needs a package of an extra; the message says what to install."""


class BenchmarkError(UserError):
    """A benchmark was asked for something impossible (no contender, a missing file, a batch size below 1)."""


class ExportError(AfmFxError):
    """The ONNX export failed, or the exported file disagrees with the program."""


class OtherProcessError(AfmFxError):
    """Another process of a distributed group failed or died, so the work cannot be finished here either."""


class CalibrationWarning(UserWarning):
    """Calibration data is thin somewhere: the result is usable, and weaker than it could be."""


def short_reason(error: BaseException) -> str:
    """The innermost reason of an error, on one line, shortened."""
    while error.__cause__ is not None:
        error = error.__cause__
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {' '.join(lines)}"[:MAX_REASON_CHARACTERS]


def id_outside(what: str, table: str, low: int, high: int) -> BatchError:
    """The error for an id outside its table, which takes ``low`` to ``high``; ``what`` says the id and its place."""
    return BatchError(f"{what} is outside table '{table}' (ids {low:,} to {high:,})")
