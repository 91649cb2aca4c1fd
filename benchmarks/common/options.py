"""Options that several benchmarks have."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

OutputDir = Annotated[Path, typer.Option(help="Where the page and its data go.", show_default="benchmarks/results")]
Force = Annotated[bool, typer.Option("--force", help="Replace existing results.")]
WorkDir = Annotated[
    Path | None, typer.Option(help="Where large files go for a while.", show_default="a temporary folder")
]
BatchSizes = Annotated[list[int], typer.Option(help="Rows per call; may be given several times.")]
TableRows = Annotated[int, typer.Option(help="Rows of all 26 tables together.")]

Dataset = Annotated[str, typer.Option(help="movielens-1m, movielens-100k, criteo or avazu.")]
DataPath = Annotated[Path, typer.Option(help="Folder with the dataset's raw published files.")]
ModelName = Annotated[str, typer.Option(help="A single-task model of deepctr-torch: DeepFM, DCN, AutoInt, ...")]
Budgets = Annotated[list[float], typer.Option(help="Share of the parameters to keep; may be given several times.")]
DataRows = Annotated[int | None, typer.Option(help="Read only the first so many rows.", show_default="all")]
MaxEpochs = Annotated[int, typer.Option(help="Upper limit of the original's training epochs.")]
Resamples = Annotated[int, typer.Option(help="Bootstrap resamples.")]
Seed = Annotated[int, typer.Option(help="Of everything that is drawn.")]
Threads = Annotated[int | None, typer.Option(help="Threads of torch.", show_default="its own choice")]
CheckpointDir = Annotated[
    Path | None, typer.Option(help="Keep what was trained here and reuse it.", show_default="keep nothing")
]
Tag = Annotated[str | None, typer.Option(help="Ends the result files' names, to tell runs apart.", show_default="none")]
