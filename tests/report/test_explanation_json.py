"""The JSON of an explanation: its schema as documented, a faithful round trip, damage that is named."""

from __future__ import annotations

import json
from dataclasses import fields
from typing import Any

import pytest

import afm_fx
from afm_fx.errors import FileFormatError
from afm_fx.report.chains import Chain
from afm_fx.report.explanation import Explanation
from afm_fx.report.flow import FlowNode
from passes.laws.verdicts import Verdict
from passes.sites.sites import Site
from tests.graphs import Tower, tower_batch


@pytest.fixture(scope="module")
def explanation() -> Explanation:
    return afm_fx.explain(Tower(), tower_batch(4))


def names(dataclass: Any) -> set[str]:
    return {field.name for field in fields(dataclass)}


def test_the_document_has_the_documented_keys(explanation: Explanation) -> None:
    document = json.loads(explanation.to_json())
    assert document["version"] == 2
    assert set(document) == {"version"} | names(Explanation)
    assert all(set(site) == names(Site) for site in document["sites"])
    for chain in document["chains"]:
        assert set(chain) == names(Chain)
        assert set(chain["site"]) == names(Site)
        assert set(chain["verdict"]) == names(Verdict)
    assert all(set(node) == names(FlowNode) for node in document["flow"])
    assert document["chains"][0]["verdict"]["fate"] == "absorbed"
    assert document["sites"][0]["kind"] == "embedding"


def test_an_explanation_comes_back_as_it_was(explanation: Explanation) -> None:
    again = Explanation.from_json(explanation.to_json())
    assert again == explanation
    assert again.table() == explanation.table()
    assert again.to_json() == explanation.to_json()


def test_two_explanations_of_one_model_are_the_same_text(explanation: Explanation) -> None:
    assert afm_fx.explain(Tower(), tower_batch(4)).to_json() == explanation.to_json()


def test_unknown_keys_are_ignored(explanation: Explanation) -> None:
    document = json.loads(explanation.to_json())
    document["later"] = document["sites"][0]["later"] = document["flow"][0]["later"] = 1
    assert Explanation.from_json(json.dumps(document)) == explanation


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (lambda document: document.pop("version"), "does not say its version"),
        (lambda document: document.update(version=1), "of version 1, this release reads version 2"),
        (lambda document: document.pop("flow"), "damaged"),
        (lambda document: document["sites"][0].update(kind="cupboard"), r"damaged.*cupboard.*\$\.sites\[0\]\.kind"),
        (lambda document: document["chains"][0]["verdict"].pop("reason"), "damaged.*reason"),
        (lambda document: document.update(flow=3), "damaged"),
    ],
)
def test_damage_is_named(explanation: Explanation, damage: Any, says: str) -> None:
    document = json.loads(explanation.to_json())
    damage(document)
    with pytest.raises(FileFormatError, match=says):
        Explanation.from_json(json.dumps(document))


def test_what_is_no_json_is_refused() -> None:
    with pytest.raises(FileFormatError, match="the explanation is damaged"):
        Explanation.from_json("{")
