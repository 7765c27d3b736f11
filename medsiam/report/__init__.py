"""A comparison as files: report.json, report.html and NIfTI."""

from medsiam.report.comparison_json import refusal_json, to_json
from medsiam.report.writer import write_comparison, write_refusal

__all__ = ["refusal_json", "to_json", "write_comparison", "write_refusal"]
