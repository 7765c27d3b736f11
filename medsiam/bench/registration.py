"""How far registration lies from the published transforms, over the brain."""

from __future__ import annotations

from pathlib import Path

from medsiam.bench.ms_pairs import ms_pairs
from medsiam.bench.scores import Score, Scores
from medsiam.compare import compare
from medsiam.pairing.motion import mean_distance_mm

# Mean mm to the same transforms of other tools, and the target of this project.
REFERENCES = {
    "patient01": ("itk-elastix rigid .24, ANTs rigid .24, SimpleITK rigid .31", "<= .5"),
    "patient19": ("itk-elastix rigid .39, ANTs rigid .38, SimpleITK rigid .79", "<= .8"),
}


def measure(data: Path | None, seed: int) -> Scores:
    """Mean distance in mm at the default setting, for each MS patient at hand."""
    rows = []
    for pair in ms_pairs(data):
        found = compare(pair.prior, pair.current, seed=seed).registration
        distance = mean_distance_mm(found.prior_from_current, pair.prior_from_current, pair.brain_points_mm())
        reference, target = REFERENCES.get(pair.name, ("", ""))
        rows.append(Score(f"{pair.name}: mean distance (mm), {found.kind}", distance, reference, target))
        rows.append(Score(f"{pair.name}: residual", found.residual))
        rows.append(
            Score(f"{pair.name}: distance between two runs (mm)", found.inverse_consistency_mm, "", "<= 1")
        )
    return Scores("registration", "ms-longitudinal FLAIR", seed, tuple(rows))
