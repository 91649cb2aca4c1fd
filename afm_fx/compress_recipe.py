"""How a compression from files is repeated: its command line, and the files that it read and wrote."""

from __future__ import annotations

import shlex
from pathlib import Path

from afm_fx.command_options import command_line
from afm_fx.compress_config import CompressConfig
from afm_fx.report_facts import Recipe, RecipeFile, sha256_of


def recipe_of(config: CompressConfig, rows: int, plan: Path) -> Recipe:
    """The recipe of a compression.

    Args:
        config: what was asked for.
        rows: of its data.
        plan: the plan's file, wherever it is at the moment.
    """
    files = [RecipeFile("calibration rows", str(config.data), f"{rows:,} rows, {_bytes(config.data)}")]
    for role, path in (("statistics", config.statistics), ("checkpoint", config.checkpoint)):
        if path is not None:
            files.append(RecipeFile(role, str(path), _bytes(path), sha256_of(path)))
    if config.evaluation is not None:
        files.append(RecipeFile("labelled rows", str(config.evaluation), _bytes(config.evaluation)))
    files.append(RecipeFile("plan", str(config.out / plan.name), _bytes(plan), sha256_of(plan)))
    return Recipe(shlex.join(["afm-fx", "compress", *command_line(config)]), tuple(files))


def _bytes(path: Path) -> str:
    files = [each for each in path.rglob("*") if each.is_file()] if path.is_dir() else [path]
    return f"{sum(each.stat().st_size for each in files):,} bytes"
