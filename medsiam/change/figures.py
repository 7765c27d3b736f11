"""The figures of a whole scan's change."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from medsiam.change.comparison import Change
from medsiam.change.findings import FoundChange

# The score's magnitude is one half at this much change.
HALF_SCORE_ML = 1.0
# Likewise in a radiograph, in percent of the lungs.
HALF_SCORE_PERCENT = 10.0


def figures(found: FoundChange) -> Change:
    """The whole scan's change: what its findings grew and shrank by, a score that saturates, a p-value."""
    deltas = [finding.delta_ml or 0.0 for finding in found.findings]
    appearing = float(sum(delta for delta in deltas if delta > 0.0))
    resolving = float(-sum(delta for delta in deltas if delta < 0.0))
    total = appearing + resolving
    return Change(
        score=(appearing - resolving) / (total + HALF_SCORE_ML),
        magnitude=total / (total + HALF_SCORE_ML),
        p_value=found.p_value,
        smallest_detectable_ml=None,
        appearing_ml=appearing,
        resolving_ml=resolving,
        order_reversal_error=None,
    )


def opacity_figures(deltas_percent: Sequence[float], p_value: float) -> Change:
    """Likewise of two radiographs, from how much of the lungs (percent) each finding grew by."""
    grown = sum(delta for delta in deltas_percent if delta > 0.0)
    total = sum(abs(delta) for delta in deltas_percent)
    return replace(
        NOT_MEASURED,
        score=(2.0 * grown - total) / (total + HALF_SCORE_PERCENT),
        magnitude=total / (total + HALF_SCORE_PERCENT),
        p_value=p_value,
        # The reversed comparison is the same one with its signs exchanged.
        order_reversal_error=0.0,
    )


NOT_MEASURED = Change(
    score=None,
    magnitude=None,
    p_value=None,
    smallest_detectable_ml=None,
    appearing_ml=None,
    resolving_ml=None,
    order_reversal_error=None,
)
