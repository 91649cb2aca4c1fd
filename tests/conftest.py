"""What all tests share: one torch thread per process (tests run in parallel) and seeded randomness.

Hypothesis draws the same examples in every run, so that a change is judged by what it changes; ``make fuzz`` draws
new ones. ``make mutants`` needs no smallest example of a failure.

Tests marked ``thorough`` say again, of more models or cases, what others say; ``--rest 2/3`` runs the second third of
them too, ``--rest 1/1`` all (``make test-all``).

What torch's exporter reads anew at every export is read once a process here: the hundreds of functions that it
translates operators with, which takes longer than most exports of small models.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator

import pytest
import torch
from hypothesis import HealthCheck, Phase, settings
from torch.onnx._internal.exporter._registration import ONNXRegistry

SEED = 7
SLOW = [HealthCheck.too_slow, HealthCheck.data_too_large]

settings.register_profile(
    "stable", max_examples=60, derandomize=True, deadline=None, print_blob=True, suppress_health_check=SLOW
)
settings.register_profile(
    "fuzz", max_examples=2_400, derandomize=False, deadline=None, print_blob=True, suppress_health_check=SLOW
)
settings.register_profile(
    "unshrunk", settings.get_profile("stable"), phases=[Phase.explicit, Phase.reuse, Phase.generate]
)
settings.load_profile("stable")


@pytest.fixture(autouse=True, scope="session")
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _seeded() -> Iterator[None]:
    with torch.random.fork_rng():
        torch.manual_seed(SEED)
        yield


@pytest.fixture(autouse=True, scope="session")
def _one_registry() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ONNXRegistry, "from_torchlib", staticmethod(functools.cache(ONNXRegistry.from_torchlib)))
        yield


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--rest", default="0/1", metavar="I/N", help="also run part I of N of the thorough tests")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    part, parts = map(int, config.getoption("--rest").split("/"))
    thorough = {item: _group(item) for item in items if item.get_closest_marker("thorough") is not None}
    wanted = set(sorted(set(thorough.values()))[part - 1 :: parts]) if part else set()
    left = [item for item, group in thorough.items() if group not in wanted]
    if left:
        config.hook.pytest_deselected(items=left)
        items[:] = [item for item in items if item not in set(left)]


def _group(item: pytest.Item) -> str:
    """Tests of one model share its capture, so they are in one part."""
    group = item.get_closest_marker("xdist_group")
    return str(group.args[0]) if group else item.nodeid
