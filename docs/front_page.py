"""Measures what the front page shows and writes its record, tables and pictures: ``python -m docs.front_page``.

It trains the demo's DeepFM on generated clicks and times four ONNX files of it in one interleaved run: the model as
trained, that model merely packed, the default plan, and one rank for all tables. ``--draw`` only writes the tables and
pictures again, from the record. Needs the extras ``cpu`` and ``deepctr``.
"""

from __future__ import annotations

import argparse
import dataclasses
import datetime as dt
import json
import re
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

import afm_fx
from docs.front_page_picture import Bars, Side, Weight, picture
from examples.demo.model import Training, build_deepfm, model_inputs, score, train
from examples.generated_clicks import ClickGenerator

ROOT = Path(__file__).parents[1]
RECORD = ROOT / "docs" / "front_page.json"
PICTURES = {theme: ROOT / "docs" / "_static" / f"before-after-{theme}.svg" for theme in ("light", "dark")}
PAGES = {ROOT / "README.md": (1, 64, 1024, 4096), ROOT / "docs" / "measured.md": (1, 16, 64, 256, 1024, 4096)}
"""The pages that hold the table, and the batch sizes that each shows."""

DENSE, PACKED, DEFAULT, UNIFORM = "dense", "dense, packed", "Budget(parameters=0.2)", "Fixed(embedding=2, linear=64)"
POLICIES = {DEFAULT: afm_fx.Budget(parameters=0.2), UNIFORM: afm_fx.Fixed(embedding=2, linear=64)}
MEANINGS = {
    DENSE: "dense, as trained",
    PACKED: "dense, only packed",
    DEFAULT: f"**default plan**, `{DEFAULT}`",
    UNIFORM: f"one rank for all tables, `{UNIFORM}`",
}
TRAINING_ROWS, TEST_ROWS, CALIBRATION_ROWS, BATCH = 300_000, 60_000, 50_000, 4096
BATCH_SIZES, SECONDS, ROUNDS = (1, 16, 64, 256, 1024, 4096), 3.0, 20

START, END = "<!-- table: python -m docs.front_page -->", "<!-- end of table -->"


@dataclass(frozen=True)
class Contender:
    """One file, as measured.

    Attributes:
        parameters: scalar parameters of the file.
        bytes: size of the file.
        operators: number of ONNX operators.
        auc: on the test rows, of ONNX Runtime's outputs.
        p50_us: batch size to median microseconds of a call.
    """

    name: str
    parameters: int
    bytes: int
    operators: int
    auc: float
    p50_us: dict[str, float]


@dataclass(frozen=True)
class Record:
    """Everything that the front page shows.

    Attributes:
        date: day of the run.
        machine: processor and versions.
        contenders: the reference first.
        weights: name to shape of every matrix, before and after the default plan.
    """

    date: str
    machine: str
    threads: int
    contenders: tuple[Contender, ...]
    weights: dict[str, dict[str, tuple[int, int]]]

    @staticmethod
    def load(path: Path = RECORD) -> Record:
        """Reads what ``save`` wrote."""
        found = json.loads(path.read_text(encoding="utf-8"))
        contenders = tuple(Contender(**each) for each in found.pop("contenders"))
        return Record(contenders=contenders, **found)

    def save(self, path: Path = RECORD) -> None:
        """Writes the record as JSON."""
        path.write_text(json.dumps(dataclasses.asdict(self), indent=1) + "\n", encoding="utf-8")

    def __getitem__(self, name: str) -> Contender:
        return next(each for each in self.contenders if each.name == name)


def measure() -> Record:
    """Trains, compresses, exports, scores and times."""
    torch.set_num_threads(1)
    generator, training = ClickGenerator(), Training()
    data, test = generator.draw(TRAINING_ROWS), generator.draw(TEST_ROWS, part=1)
    model = build_deepfm(generator.vocabulary_sizes, generator.dense_fields, training)
    train(model, data, training)
    rows, test_rows = model_inputs(data), model_inputs(test)
    original = afm_fx.capture(model, rows[:BATCH])
    calibration = list(rows[:CALIBRATION_ROWS].split(BATCH))  # type: ignore[no-untyped-call]
    low_rank = {name: afm_fx.compress(original, calibration, each, pack=False) for name, each in POLICIES.items()}
    programs = {DENSE: original, PACKED: afm_fx.pack(original).program}
    programs |= {name: afm_fx.pack(each.program).program for name, each in low_rank.items()}
    with tempfile.TemporaryDirectory() as folder:
        files = {name: Path(folder) / f"{number}.onnx" for number, name in enumerate(programs)}
        exports = {name: afm_fx.export_onnx(program, files[name]) for name, program in programs.items()}
        aucs = {name: score(test.clicks, _scores(path, test_rows)).auc for name, path in files.items()}
        timing = afm_fx.benchmark(files, test_rows, batch_sizes=BATCH_SIZES, seconds=SECONDS, rounds=ROUNDS)
    return Record(
        str(dt.datetime.now(tz=dt.UTC).date()),
        timing.machine.line(),
        timing.threads,
        tuple(
            Contender(
                name,
                export.parameters,
                export.bytes,
                export.node_count,
                aucs[name],
                {str(size): timing.timing(name, size).p50_us for size in BATCH_SIZES},
            )
            for name, export in exports.items()
        ),
        {"before": _matrices(original), "after": _matrices(low_rank[DEFAULT].program)},
    )


def _scores(path: Path, rows: torch.Tensor) -> NDArray[np.float32]:
    session = afm_fx.Session(path)
    scores = [torch.as_tensor(session.run(batch)) for batch in rows.split(BATCH)]  # type: ignore[no-untyped-call]
    return torch.cat(scores).flatten().numpy()


def _matrices(program: afm_fx.Program) -> dict[str, tuple[int, int]]:
    named = program.graph_module.named_parameters()
    return {name: (value.shape[0], value.shape[1]) for name, value in named if value.dim() == 2}


def table(record: Record, batch_sizes: tuple[int, ...]) -> str:
    """The table in Markdown: times of a call, with how many times as fast as the dense file merely packed."""
    heads = ["", "parameters", "operators", "AUC", *(f"batch {size:,}" for size in batch_sizes)]
    lines = [f"| {' | '.join(heads)} |", f"|---|{'---:|' * (len(heads) - 1)}"]
    for each in record.contenders:
        times = [f"{_time(each.p50_us[str(size)])} ({_speed(record, each, size)})" for size in batch_sizes]
        cells = [MEANINGS[each.name], f"{each.parameters:,}", str(each.operators), f"{each.auc:.4f}", *times]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def with_table(page: str, record: Record, batch_sizes: tuple[int, ...]) -> str:
    """A page with its table written again."""
    found, count = re.subn(
        f"{START}.*?{END}",
        lambda _: f"{START}\n\n{table(record, batch_sizes)}\n\n{END}",
        page,
        flags=re.DOTALL,
    )
    if count != 1:
        raise ValueError(f"a page needs one place between {START} and {END}, this one has {count}")
    return found


def _speed(record: Record, each: Contender, size: int) -> str:
    return f"{record[PACKED].p50_us[str(size)] / each.p50_us[str(size)]:.2f}x"


def _time(microseconds: float) -> str:
    return f"{microseconds:,.0f} us" if microseconds < 1000 else f"{microseconds / 1000:,.1f} ms"


def drawn(record: Record, theme: str) -> str:
    """The picture as SVG."""
    sides = tuple(
        Side(title, _facts(each), weights(record.weights[when]))
        for title, each, when in (
            ("Before: a DeepFM as trained", record[DENSE], "before"),
            (f"After: {DEFAULT}, packed", record[DEFAULT], "after"),
        )
    )
    labels = {
        DENSE: "dense",
        PACKED: "dense, only packed",
        DEFAULT: "default plan",
        UNIFORM: "one rank for all tables",
    }
    bars = tuple(
        Bars(
            f"batch {size:,}",
            tuple(
                (labels[each.name], each.p50_us[str(size)], _time(each.p50_us[str(size)])) for each in record.contenders
            ),
        )
        for size in (1, 64, 1024)
    )
    return picture(sides, bars, theme)


def _facts(each: Contender) -> str:
    return f"{each.parameters:,} parameters, {each.bytes / 1e6:.2f} MB, {each.operators} operators, AUC {each.auc:.4f}"


def weights(matrices: dict[str, tuple[int, int]]) -> tuple[Weight, ...]:
    """Rows and columns of tables (codes, or rows with their linear weights) and of the layers' matrices, in order."""
    tables: dict[int, tuple[int, int]] = {}
    layers: dict[int, list[tuple[int, int]]] = {}
    for name, (rows, columns) in matrices.items():
        if found := re.search(r"embedding_dict\.C(\d+)\.(joint\.)?(codes\.)?weight", name):
            number = int(found[1])
            tables[number] = (rows, tables.get(number, (0, 0))[1] + columns)
        elif found := re.search(r"dnn\.linears\.(\d+)\.(on_codes|decoder)?", name):
            layers.setdefault(int(found[1]), []).append((columns, rows))  # inputs down, outputs across
    ordered = [Weight("table", number, *tables[number]) for number in sorted(tables)]
    return (*ordered, *(Weight("layer", number, *shape) for number in sorted(layers) for shape in layers[number]))


def write(record: Record) -> None:
    """Writes the tables into their pages, and the pictures."""
    for page, batch_sizes in PAGES.items():
        page.write_text(with_table(page.read_text(encoding="utf-8"), record, batch_sizes), encoding="utf-8")
    for theme, path in PICTURES.items():
        path.write_text(drawn(record, theme), encoding="utf-8")


def main() -> None:
    """Measures, or draws again what was measured."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--draw", action="store_true", help="measure nothing: write tables and pictures again")
    if not parser.parse_args().draw:
        measure().save()
    write(Record.load())


if __name__ == "__main__":
    main()
