"""What all tests share: one torch thread per process (tests run in parallel) and seeded randomness."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

SEED = 7


@pytest.fixture(autouse=True, scope="session")
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _seeded() -> Iterator[None]:
    with torch.random.fork_rng():
        torch.manual_seed(SEED)
        yield
