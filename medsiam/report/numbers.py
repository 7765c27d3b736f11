"""Figures as reports round them."""

from __future__ import annotations

import math

# A thousandth of a millimetre and a hundredth of a microlitre lie far below
# what any scanner resolves; a rotation needs nine places to hold that at 1 m.
PLACES_MM = 3
PLACES_ML = 5
PLACES_MATRIX = 9
PLACES_SHARE = 6
SIGNIFICANT_DIGITS = 4


def places(value: float | None, count: int) -> float | None:
    """The value with so many places after the point; None where it is not finite."""
    if value is None or not math.isfinite(value):
        return None
    # Adding zero turns -0.0 into 0.0, which reads better and compares equal.
    return round(float(value), count) + 0.0


def significant(value: float | None) -> float | None:
    """The value with SIGNIFICANT_DIGITS; None where it is not finite."""
    if value is None or not math.isfinite(value):
        return None
    return float(f"{value:.{SIGNIFICANT_DIGITS}g}") + 0.0
