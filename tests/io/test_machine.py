from __future__ import annotations

from importlib import metadata

from afm_fx.io.machine import available_cores, this_machine


def test_the_machine_is_described_with_the_versions_that_matter() -> None:
    machine = this_machine()
    assert machine.cpu
    assert machine.cores == available_cores() >= 1
    assert dict(machine.packages)["torch"] == metadata.version("torch")
    assert machine.cpu in machine.line()
    assert f"torch {metadata.version('torch')}" in machine.line()
