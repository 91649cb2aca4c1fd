from __future__ import annotations

from benchmarks.cost.packing_memory import COLUMNS, PackMemory, memory_rows


def test_ratios_are_in_sizes_of_the_tables() -> None:
    memory = PackMemory(
        rows=10, width=15, largest_share=0.25, free_sources=True, table_bytes=640, before_model=100, before_pack=740,
        peak=932, after_pack=804, capture_seconds=0.1, pack_seconds=0.1,
    )  # fmt: skip
    assert (memory.before, memory.whole, memory.kept) == (1.0, 1.3, 1.1)
    assert memory.bound == 1.3125
    (row,) = memory_rows([memory])
    assert dict(zip(COLUMNS, row, strict=True))["peak / tables"] == "1.30"
