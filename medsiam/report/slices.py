"""Which slice of the current scan is meant, as this package counts and as the archive does.

Slices are counted along the normal of their plane, whatever their instance numbers are; a viewer
in the archive goes by those numbers, often the other way round.
"""

from __future__ import annotations

import numpy as np

from medsiam.change.comparison import Comparison, Finding
from medsiam.volume import Volume


def shown_slice(comparison: Comparison, finding: Finding) -> int:
    """The slice k at which a finding is shown.

    Its centre's; the nearest slice that holds it where the centre's slice does not.
    """
    grid, labels = comparison.current.grid, comparison.labels
    k = int(np.clip(np.rint(grid.index([finding.centre_lps_mm])[0, 0]), 0, grid.shape[0] - 1))
    if (labels[k] == finding.label).any():
        return k
    held = np.flatnonzero((labels == finding.label).any(axis=(1, 2)))
    return int(held[np.argmin(np.abs(held - k))]) if held.size else k


def image_number(volume: Volume, k: int) -> int | None:
    """The archive's number of slice k, None where it is not told."""
    numbers = volume.acquisition.image_numbers
    return numbers[k] if len(numbers) == volume.grid.shape[0] else None


def other_numbers(volume: Volume) -> tuple[int, ...]:
    """The archive's number of each slice, () where it is not told or counts as this package does."""
    numbers = volume.acquisition.image_numbers
    own = tuple(range(1, volume.grid.shape[0] + 1))
    return numbers if len(numbers) == len(own) and numbers != own else ()
