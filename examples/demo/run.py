"""What the demo does, and the table of what it measured."""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from afm_fx.commands import DENSE, LOW_RANK, OUTPUTS, write_outputs
from afm_fx.compression import Compressed, compress
from afm_fx.errors import UserError
from afm_fx.io import refuse_existing, render_table, staged_outputs, track
from afm_fx.measure import Measurement, benchmark, make_contender
from afm_fx.planning import Fixed, Policy
from afm_fx.program import capture
from afm_fx.runtime import ExportReport
from examples.demo.model import Quality, Training, build_deepfm, model_inputs, score, train
from examples.generated_clicks import ClickGenerator

RESULT = "demo.json"
DEMO_OUTPUTS = (*OUTPUTS, RESULT)
_SCORING_BATCH = 4096

Say = Callable[[str], None]


@dataclass(frozen=True)
class DemoSettings:
    """What the demo does.

    Attributes:
        out: directory of the outputs.
        rows: training rows.
        test_rows: rows that quality is measured on, never trained on.
        calibration_rows: training rows, without labels, that the pass looks at.
        generator: the data's truth.
        training: the model and its training.
        policy: picks the ranks.
        batch_sizes: rows per call in the timing.
        threads: of training and timing.
        seconds: timing per file and batch size.
        force: replace existing outputs.
    """

    out: Path
    rows: int = 300_000
    test_rows: int = 60_000
    calibration_rows: int = 50_000
    generator: ClickGenerator = dataclasses.field(default_factory=ClickGenerator)
    training: Training = dataclasses.field(default_factory=Training)
    policy: Policy = dataclasses.field(default_factory=lambda: Fixed(embedding=2, linear=64))
    batch_sizes: tuple[int, ...] = (1, 256, 4096)
    threads: int = 1
    seconds: float = 1.0
    force: bool = False

    def __post_init__(self) -> None:
        if min(self.rows, self.test_rows, self.calibration_rows) < 2:
            raise UserError("the demo needs at least 2 rows to train, to calibrate and to test on")
        if self.threads < 1:
            raise UserError(f"threads must be at least 1, got {self.threads}")


@dataclass(frozen=True)
class Version:
    """One version of the model, as measured from its ONNX file.

    Attributes:
        parameters: scalar parameters.
        file_bytes: size of the ONNX file.
        quality: on the test rows, computed by ONNX Runtime.
        max_abs_difference: largest difference between ONNX Runtime and torch.
    """

    parameters: int
    file_bytes: int
    quality: Quality
    max_abs_difference: float


@dataclass(frozen=True)
class DemoResult:
    """What the demo measured.

    Attributes:
        dense: the model as trained.
        low_rank: the model after the pass.
        best_possible: quality of the true click probabilities on the same rows.
        timing: both files, interleaved.
    """

    dense: Version
    low_rank: Version
    best_possible: Quality
    timing: Measurement

    def table(self) -> str:
        """The one table."""
        dense, low = self.dense, self.low_rank
        rows = [
            ("parameters", f"{dense.parameters:,}", f"{low.parameters:,}", _smaller(dense.parameters, low.parameters)),
            (
                "ONNX file",
                f"{dense.file_bytes / 1e6:,.2f} MB",
                f"{low.file_bytes / 1e6:,.2f} MB",
                _smaller(dense.file_bytes, low.file_bytes),
            ),
            (
                "AUC",
                f"{dense.quality.auc:.4f}",
                f"{low.quality.auc:.4f}",
                f"{low.quality.auc - dense.quality.auc:+.4f}",
            ),
            (
                "LogLoss",
                f"{dense.quality.log_loss:.4f}",
                f"{low.quality.log_loss:.4f}",
                f"{low.quality.log_loss - dense.quality.log_loss:+.4f}",
            ),
        ]
        for batch_size in self.timing.batch_sizes:
            before, after = (self.timing.timing(name, batch_size) for name in ("dense", "low-rank"))
            one, other = before.latencies, after.latencies
            pairs = [("p50", one.p50_us, other.p50_us), ("p99", one.p99_us, other.p99_us)]
            if pairs[1][1] is None or pairs[1][2] is None:  # too few calls for it
                pairs[1] = ("p90", one.p90_us, other.p90_us)
            rows += [
                (f"{what} at batch {batch_size:,}", _time(left), _time(right), _faster(left, right))
                for what, left, right in pairs
                if left is not None and right is not None
            ]
        return render_table("", ("", "dense", "low-rank", "change"), rows)

    def footnotes(self) -> str:
        """Under what conditions the table was measured."""
        threads, best = self.timing.threads, self.best_possible
        lines = (
            f"Quality is that of ONNX Runtime's outputs; the true click probabilities score AUC {best.auc:.4f} and "
            f"LogLoss {best.log_loss:.4f}.",
            f"Largest difference between ONNX Runtime and torch: {self.dense.max_abs_difference:.0e} dense, "
            f"{self.low_rank.max_abs_difference:.0e} low-rank.",
            f"Times: {threads} thread{'s' if threads > 1 else ''}, the two files in turn, on",
            f"{self.timing.machine.line()}.",
        )
        return "\n".join(lines)

    def to_json(self) -> str:
        """Everything as a JSON document."""
        document = {
            "dense": dataclasses.asdict(self.dense),
            "low_rank": dataclasses.asdict(self.low_rank),
            "best_possible": dataclasses.asdict(self.best_possible),
            "timing": json.loads(self.timing.to_json()),
        }
        return json.dumps(document, indent=2) + "\n"


def run_demo(settings: DemoSettings, say: Say) -> DemoResult:
    """Runs the demo and writes both ONNX files, the plan, the report and the measurements, or nothing at all.

    Args:
        settings: what to do.
        say: takes one line of text at a time.

    Raises:
        UserError: the outputs exist, or an extra is not installed.
        ExportError: an exported file disagrees with torch.
    """
    refuse_existing(settings.out, DEMO_OUTPUTS, force=settings.force)
    torch.set_num_threads(settings.threads)
    generator = settings.generator
    model = build_deepfm(generator.vocabulary_sizes, generator.dense_fields, settings.training)
    data, test = generator.draw(settings.rows), generator.draw(settings.test_rows, part=1)
    best = score(test.clicks, test.probabilities)
    say(
        f"1 data      {data.rows:,} generated impressions, {generator.sparse_fields} id fields "
        f"({sum(generator.vocabulary_sizes):,} ids, Zipf), {generator.dense_fields} dense, "
        f"click rate {data.clicks.mean():.1%}"
    )
    started = time.perf_counter()
    train(model, data, settings.training)
    count = sum(parameter.numel() for parameter in model.parameters())
    say(
        f"2 train     DeepFM, tables {settings.training.embedding_width} wide, "
        f"MLP {'-'.join(map(str, settings.training.hidden_units))}, {count:,} parameters{_since(started)}"
    )
    started = time.perf_counter()
    inputs = model_inputs(data)
    program = capture(model, inputs[:_SCORING_BATCH])
    calibration = list(inputs[: settings.calibration_rows].split(_SCORING_BATCH))  # type: ignore[no-untyped-call]
    compressed = compress(program, calibration, settings.policy)
    say(f"3 compress  {_what_was_done(compressed)}{_since(started)}")
    with staged_outputs(settings.out, DEMO_OUTPUTS) as staging:
        started = time.perf_counter()
        exports = write_outputs(compressed, staging)
        say(f"4 export    {DENSE} and {LOW_RANK}, each checked against torch{_since(started)}")
        started = time.perf_counter()
        versions = [
            _version(export, staging / name, model_inputs(test), test.clicks)
            for export, name in zip(exports, (DENSE, LOW_RANK), strict=True)
        ]
        timing = benchmark(
            {"dense": staging / DENSE, "low-rank": staging / LOW_RANK},
            model_inputs(test),
            batch_sizes=settings.batch_sizes,
            threads=settings.threads,
            seconds=settings.seconds,
        )
        say(f"5 measure   quality on {test.rows:,} other impressions, latency in ONNX Runtime{_since(started)}")
        result = DemoResult(versions[0], versions[1], best, timing)
        (staging / RESULT).write_text(result.to_json(), encoding="utf-8")
    return result


def _version(export: ExportReport, path: Path, inputs: Tensor, clicks: NDArray[np.float32]) -> Version:
    if export.max_abs_difference is None:
        raise ValueError(f"{export.path} was exported without its check")
    quality = score(clicks, _predict(path, inputs))
    return Version(export.parameters, export.bytes, quality, export.max_abs_difference)


def _predict(path: Path, inputs: Tensor) -> NDArray[np.float32]:
    session = make_contender(path.name, path, threads=torch.get_num_threads())
    batches: Sequence[Tensor] = inputs.split(_SCORING_BATCH)  # type: ignore[no-untyped-call]
    outputs = [session.prepare(batch)()[0].reshape(-1) for batch in track(batches, f"Scoring {path.name}")]
    return np.concatenate(outputs)


def _what_was_done(compressed: Compressed) -> str:
    factored = [site for site in compressed.plan.sites if site.rank is not None]
    tables = sum(site.kind == "embedding" for site in factored)
    return (
        f"{tables} tables and {len(factored) - tables} layers factored from {compressed.statistics.rows:,} "
        f"unlabelled rows{_how_it_was_packed(compressed)}"
    )


def _how_it_was_packed(compressed: Compressed) -> str:
    packing = compressed.packing
    if packing is None:
        return ""
    return f"; {packing.before.operators} operators packed into {packing.after.operators}"


def _since(started: float) -> str:
    return f" ({time.perf_counter() - started:.0f} s)"


def _smaller(before: float, after: float) -> str:
    return f"{before / after:.1f}x smaller"


def _faster(before: float, after: float) -> str:
    return f"{before / after:.2f}x faster" if after <= before else f"{after / before:.2f}x slower"


def _time(microseconds: float) -> str:
    return f"{microseconds:,.0f} us" if microseconds < 1000 else f"{microseconds / 1000:,.2f} ms"
