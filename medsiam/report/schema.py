"""The JSON Schemas of all that is told in JSON, and whether a report keeps its own."""

from __future__ import annotations

import json
from functools import cache
from importlib.resources import files
from typing import Any

from jsonschema import Draft202012Validator  # type: ignore[import-untyped]

from medsiam.report import search_json, trajectory_json, worklist_html
from medsiam.report.comparison_json import SCHEMA

FILE_OF_SCHEMA = {
    SCHEMA: "comparison-1.json",
    trajectory_json.SCHEMA: "trajectory-1.json",
    search_json.SCHEMA: "search-1.json",
    worklist_html.SCHEMA: "worklist-1.json",
    worklist_html.MANIFEST_SCHEMA: "manifest-1.json",
}


@cache
def load_schema(name: str = SCHEMA) -> dict[str, Any]:
    """The JSON Schema (draft 2020-12) that ships with the package."""
    text = files("medsiam.report").joinpath("schemas", FILE_OF_SCHEMA[name]).read_text(encoding="utf-8")
    schema: dict[str, Any] = json.loads(text)
    return schema


def violations(report: object, name: str = SCHEMA) -> tuple[str, ...]:
    """Where a report breaks its schema, each as `path: what`; () where it keeps it."""
    errors = Draft202012Validator(load_schema(name)).iter_errors(report)
    return tuple(sorted(f"{error.json_path}: {error.message}" for error in errors))
