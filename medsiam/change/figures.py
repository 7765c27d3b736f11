"""The figures of a whole scan's change."""

from __future__ import annotations

from medsiam.change.comparison import Change
from medsiam.change.findings import FoundChange

# The score's magnitude is one half at this much change.
HALF_SCORE_ML = 1.0


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


NOT_MEASURED = Change(
    score=None,
    magnitude=None,
    p_value=None,
    smallest_detectable_ml=None,
    appearing_ml=None,
    resolving_ml=None,
    order_reversal_error=None,
)
