"""Anything to Volume: DICOM, NIfTI and radiograph files, series found and told apart."""

from medsiam.reading.entry import SeriesEntry
from medsiam.reading.finding import find_series, read_series, read_volume
from medsiam.reading.identity import birth_key, load_key, number_key, patient_key

__all__ = [
    "SeriesEntry",
    "birth_key",
    "find_series",
    "load_key",
    "number_key",
    "patient_key",
    "read_series",
    "read_volume",
]
