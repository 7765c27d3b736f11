"""report.json: what stands in it, and that the schema refuses what must not."""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from jsonschema import Draft202012Validator

from medsiam.change.comparison import Change
from medsiam.pairing.values import Comparability, Difference
from medsiam.report.comparison_json import refusal_json, to_json, to_text
from medsiam.report.schema import load_schema, violations
from tests import comparison_maker as maker

CONTRACT_KEYS = [
    *("schema", "status", "refusal", "verdict", "summary", "prior", "current", "interval_days"),
    *("comparability", "registration", "change", "findings", "embedding", "similar_cases"),
    *("provenance", "files"),
]
FILES = {"json": "report.json", "html": "report.html"}


def report(**changes: Any) -> dict[str, Any]:
    return to_json(maker.comparison(**changes), files=FILES)


def refused(**known: Any) -> dict[str, Any]:
    return refusal_json("geometry", "a slice is missing at 12 mm; send the whole series", **known)


def test_the_schema_is_itself_a_json_schema():
    Draft202012Validator.check_schema(load_schema())


@pytest.mark.parametrize(
    "made",
    [
        report(),
        to_json(maker.stable(embedding=maker.embedding()), files={}),
        to_json(maker.radiograph(), files=FILES),
        refused(),
        refused(prior=maker.acquisition(1), current=maker.comparison().current),
        refusal_json("not-comparable", "a head and a chest; choose two scans of one part"),
        refused(
            registration=maker.registration(quality="failed"),
            comparability=Comparability("protocol-changed", (Difference("a", "b", "c", "d"),)),
            provenance=maker.provenance(),
            notes=("seen",),
        ),
    ],
    ids=["mixed", "stable", "radiograph", "refused", "refused-knowing", "not-comparable", "refused-late"],
)
def test_what_is_written_keeps_the_schema_and_the_contract_s_order(made):
    """Keys of the contract come first and in its order; further ones may follow."""
    assert violations(made) == ()
    assert list(made)[: len(CONTRACT_KEYS)] == CONTRACT_KEYS


def without(key: str) -> Callable[[dict[str, Any]], Any]:
    return lambda made: made.pop(key)


@pytest.mark.parametrize(
    "spoil",
    [
        *[pytest.param(without(key), id=f"no {key}") for key in CONTRACT_KEYS],
        pytest.param(lambda made: made.update(schema="medsiam.comparison/2"), id="another schema"),
        pytest.param(lambda made: made.update(status="failed"), id="unknown status"),
        pytest.param(lambda made: made.update(status="refused"), id="refused with findings"),
        pytest.param(
            lambda made: made.update(refusal={"code": "x", "message": "y"}), id="refusal of a result"
        ),
        pytest.param(lambda made: made.update(verdict="progressed"), id="progressed, but one resolved"),
        pytest.param(lambda made: made.update(verdict="stable"), id="stable with findings"),
        pytest.param(lambda made: made.update(findings=[]), id="mixed without findings"),
        pytest.param(lambda made: made.update(prior=None), id="no prior"),
        pytest.param(lambda made: made["prior"].update(acquired="4.3.2021"), id="no ISO date"),
        pytest.param(lambda made: made["prior"].pop("patient_key"), id="no patient key"),
        pytest.param(lambda made: made["current"].update(shape_kji=[1, 2]), id="flat shape"),
        pytest.param(lambda made: made["change"].pop("order_reversal_error"), id="no reversal error"),
        pytest.param(lambda made: made["change"].update(score=1.5), id="score beyond 1"),
        pytest.param(lambda made: made["change"].update(p_value="0.01"), id="p-value as text"),
        pytest.param(lambda made: made["findings"][0].update(kind="moved"), id="unknown kind"),
        pytest.param(lambda made: made["findings"][0].update(label=0), id="label 0"),
        pytest.param(lambda made: made["registration"]["prior_from_current"].pop(), id="3 x 4 matrix"),
        pytest.param(lambda made: made["registration"].update(prior_from_current=None), id="no matrix"),
        pytest.param(lambda made: made["registration"].update(quality="bad"), id="unknown quality"),
        pytest.param(lambda made: made["registration"].update(quality="failed"), id="verdict though failed"),
        pytest.param(
            lambda made: made["comparability"].update({"class": "not-comparable"}),
            id="verdict though not comparable",
        ),
        pytest.param(lambda made: made["files"].update(html="/etc/passwd"), id="absolute path"),
        pytest.param(lambda made: made["files"].update(html="../report.html"), id="path out of the folder"),
        pytest.param(lambda made: made["provenance"]["inputs"][0].update(sha256="12"), id="no digest"),
    ],
)
def test_the_schema_refuses_a_spoilt_report(spoil):
    """A schema that lets everything pass proves nothing."""
    made = copy.deepcopy(report())

    spoil(made)

    assert violations(made) != ()


@pytest.mark.parametrize(
    "spoil",
    [
        {"verdict": "stable"},
        {"refusal": None},
        {"files": {"html": "report.html"}},
    ],
)
def test_the_schema_refuses_a_refusal_that_says_more_than_it_knows(spoil):
    assert violations(refused() | spoil) != ()


def test_numbers_are_rounded_but_not_their_meaning():
    """A p-value keeps four digits however small, a matrix nine places, a length three."""
    made = report(
        findings=(maker.finding(1, p_value=1.23456e-12, centre_lps_mm=(1.23456, -2.0, -0.0)),),
        verdict="progressed",
    )

    assert made["findings"][0]["p_value"] == 1.235e-12
    assert made["findings"][0]["centre_lps_mm"] == [1.235, -2.0, 0.0]
    assert math.copysign(1, made["findings"][0]["centre_lps_mm"][2]) == 1
    assert made["registration"]["prior_from_current"][2][3] == 0.123456789


def test_neither_nan_nor_infinity_reaches_the_file():
    """JSON has no such numbers, and parsers that take them disagree."""
    hole, wide = float("nan"), float("inf")
    made = report(
        change=Change(hole, wide, hole, wide, hole, hole, None),
        registration=maker.registration(residual=hole, determinant=wide, inverse_consistency_mm=hole),
        provenance=maker.provenance(seconds={"read": hole}, config={"a": [wide, np.float32(hole)]}),
    )

    text = to_text(made)

    assert "NaN" not in text and "Infinity" not in text
    assert json.loads(text)["change"]["score"] is None
    assert violations(json.loads(text)) == ()


def test_settings_of_any_python_type_become_plain_json():
    config = {
        "path": Path("a/b"),
        "shape": (1, 2),
        "step": np.int64(3),
        "set": {"b", "a"},
        "on": True,
        4: None,
    }

    made = report(provenance=maker.provenance(config=config))

    assert made["provenance"]["config"] == {
        "path": str(Path("a/b")), "shape": [1, 2], "step": 3, "set": ["a", "b"], "on": True, "4": None,
    }  # fmt: skip


def test_a_scan_whose_header_tells_nothing_gives_null_and_not_empty_text():
    """A NIfTI file has neither date nor numbers of study and patient."""
    made = maker.comparison()
    bare = maker.acquisition(1, "").__class__()
    prior = replace(made.prior, acquisition=bare)

    told = to_json(replace(made, prior=prior), files={})

    assert told["prior"]["acquired"] is None and told["prior"]["patient_key"] is None
    assert told["interval_days"] is None
    assert told["provenance"]["inputs"][0] == {"series_uid": None, "sha256": None}
    assert violations(told) == ()


def test_a_half_letter_from_a_broken_header_can_still_be_written():
    """A lone surrogate cannot be encoded; the file must not fail for it."""
    text = to_text(to_json(maker.with_header_text(maker.comparison(), "a\ud800b\x00"), files={}))

    assert json.loads(text.encode("utf-8"))["prior"]["description"] == "a?b\x00"


def test_without_an_embedding_the_report_says_why():
    assert report()["embedding"] is None
    assert "encoder" in report()["embedding_note"]
    assert report(embedding=maker.embedding())["embedding_note"] is None


def test_a_refusal_for_scans_that_differ_in_kind_names_the_class():
    made = refusal_json("not-comparable", "a head and a chest")

    assert made["comparability"]["class"] == "not-comparable"
    assert made["verdict"] == "indeterminate" and made["files"] == {}
    assert made["refusal"] == {"code": "not-comparable", "message": "a head and a chest"}


def test_the_interval_is_told_even_when_refused_and_signed():
    """A prior that is later than the current is a reason to look twice."""
    made = refused(prior=maker.acquisition(2), current=maker.acquisition(1))

    assert made["interval_days"] == -365.0


def test_two_runs_give_the_same_text():
    assert to_text(report()) == to_text(report())


def test_a_failed_registration_without_a_matrix_can_still_be_told():
    """NaN rows are no transform; null says so."""
    lost = maker.registration(quality="failed", prior_from_current=np.full((4, 4), np.nan))

    made = report(registration=lost, verdict="indeterminate")

    assert made["registration"]["prior_from_current"] is None
    assert violations(made) == ()


def test_a_finding_tells_the_archive_s_number_of_its_image():
    """New lies at 4 mm and resolved at -6 mm, on slices of 4 mm."""
    current = maker.comparison().current
    numbers = tuple(range(100, 100 + current.grid.shape[0]))
    numbered = replace(current, acquisition=replace(current.acquisition, image_numbers=numbers))

    assert [found["image_number"] for found in report(current=numbered)["findings"]] == [112, 110]
    assert [found["image_number"] for found in report()["findings"]] == [None, None]
