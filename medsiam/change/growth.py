"""How fast a volume grows: straight lines through few points, with honest intervals.

The interval is Student's on the residuals of an ordinary least squares line
(Draper and Smith, Applied Regression Analysis, chapter 1): it holds where the
errors of the volumes are independent and alike. Two points fit a line without
residuals, so they have no interval, and none is made up.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import special

# Half of what lies outside a 95 % interval, on either side.
UPPER_QUANTILE = 0.975
# A mean month, so that a rate does not depend on which months were scanned.
DAYS_A_MONTH = 30.4375
# Scans of one day say nothing of growth; their noise over a short time would be a huge rate.
SHORTEST_SPAN_DAYS = 1.0


@dataclass(frozen=True)
class Estimate:
    """A fitted figure with its 95 % interval.

    low, high  both None where two points alone leave no interval; for a doubling time
               high alone is None where growth is not certain: it may be endless
    points     scans it was fitted to
    """

    value: float
    low: float | None
    high: float | None
    points: int


def growth_rate(days: Sequence[float], volumes_ml: Sequence[float]) -> Estimate | None:
    """The slope of volume over time in ml per month; None where fewer than two days are apart."""
    return _slope(np.asarray(days, dtype=np.float64) / DAYS_A_MONTH, np.asarray(volumes_ml, dtype=np.float64))


def doubling_time(days: Sequence[float], volumes_ml: Sequence[float]) -> Estimate | None:
    """The days in which the volume doubles, from a line through its logarithm.

    None where a volume is not above 0, where it does not grow, and where fewer
    than two days are apart.
    """
    if len(volumes_ml) == 0 or min(volumes_ml) <= 0.0:
        return None
    doublings = _slope(np.asarray(days, dtype=np.float64), np.log2(np.asarray(volumes_ml, dtype=np.float64)))
    if doublings is None or doublings.value <= 0.0:
        return None
    slow, fast = doublings.low, doublings.high
    return Estimate(
        1.0 / doublings.value,
        1.0 / fast if fast is not None else None,
        1.0 / slow if slow is not None and slow > 0.0 else None,
        doublings.points,
    )


def _slope(x: NDArray[np.float64], y: NDArray[np.float64]) -> Estimate | None:
    if x.size < 2 or float(np.ptp(x)) * DAYS_A_MONTH < SHORTEST_SPAN_DAYS:
        return None
    spread = x - x.mean()
    squares = float(spread @ spread)
    slope = float(spread @ y) / squares
    freedom = x.size - 2
    if freedom == 0:
        return Estimate(slope, None, None, int(x.size))
    residuals = y - y.mean() - slope * spread
    error = float(np.sqrt(residuals @ residuals / freedom / squares))
    reach = float(special.stdtrit(freedom, UPPER_QUANTILE)) * error
    return Estimate(slope, slope - reach, slope + reach, int(x.size))
